"""Forms: classes laid over the class of a recurrent module, which evaluate its parameters in another way."""

from __future__ import annotations

import types
from typing import Any, ClassVar

import torch
from torch import nn


class Form(nn.Module):
    """A form. :func:`form_class` makes the class that is a module's own and a form at once."""

    made_of: ClassVar[tuple[type[nn.Module], type[Form]]]


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without the form that is laid over it."""
    return type(module).made_of[0] if isinstance(module, Form) else type(module)


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module], type[Form]], type[Form]] = {}


def form_class(original: type[nn.Module], base: type[nn.Module], form: type[Form]) -> type[Form]:
    """Return the class that is both ``original`` and ``form``; there is one for each triple.

    Args:
        original: The class of a module.
        base: The class among its bases whose ``forward`` is the recurrence. Where ``original`` has a ``forward`` of its
            own around that, the form stands in between: it is what ``super().forward`` finds.
        form: The form.
    """
    key = (original, base, form)
    if key not in _CLASSES:
        name = f"{form.__name__.removesuffix('Layer').removesuffix('Cell')}{original.__name__}"
        namespace: dict[str, Any] = {"__module__": form.__module__, "made_of": (original, form)}
        bases: tuple[type[nn.Module], ...] = (form, original)
        if original.forward is not base.forward:
            bases = (original, form_class(base, base, form))
            # A compiler would see a state without what a form attaches to it.
            namespace["forward"] = torch.compiler.disable(original.forward)  # type: ignore[no-untyped-call]
        _CLASSES[key] = types.new_class(name, bases, exec_body=lambda body: body.update(namespace))
    return _CLASSES[key]
