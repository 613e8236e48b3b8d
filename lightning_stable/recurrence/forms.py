"""Forms: classes laid over the class of a recurrent module, which evaluate its parameters in another way."""

from __future__ import annotations

from torch import nn


class Form(nn.Module):
    """A form. A class laid over a module's own has the form as its first base and the module's own as its last."""


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without the form that is laid over it."""
    return type(module).__bases__[-1] if isinstance(module, Form) else type(module)
