"""A guard over the model while its twin runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn


@contextmanager
def leaves_alone(model: nn.Module, twin: nn.Module) -> Iterator[None]:
    """Run the twin in the block, and refuse a twin that calls, changes or differentiates the model.

    A copy keeps what a function closes over, which may be the model or its layers.

    Args:
        model: The module that must be left alone.
        twin: The module that runs; it may share parts with the model.

    Raises:
        MisconfigurationException: If the block used the model.
    """
    own = set(map(id, twin.modules()))
    modules = {name: module for name, module in model.named_modules() if id(module) not in own}

    def refuse(called: nn.Module, _: Any) -> None:
        raise _used(model, f"a call of its {type(called).__name__}")

    attributes = {name: dict(vars(module)) for name, module in modules.items()}
    gradients = {name: (value.grad, _version(value)) for name, value in model.named_parameters()}
    handles = [module.register_forward_pre_hook(refuse) for module in modules.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, module in modules.items():
        for key, value in vars(module).items():
            if key not in attributes[name] or attributes[name][key] is not value:
                raise _used(model, f"a new value of {f'{name}.{key}'.lstrip('.')!r}")
    for name, parameter in model.named_parameters():
        gradient, version = gradients[name]
        if parameter.grad is not gradient or _version(parameter) != version:
            raise _used(model, f"a gradient of {name!r}")


def _version(parameter: nn.Parameter) -> int:
    return 0 if parameter.grad is None else parameter.grad._version


def _used(model: nn.Module, use: str) -> MisconfigurationException:
    kind = type(model).__name__
    return MisconfigurationException(
        f"FeedForwardShadowCallback needs a twin apart from its model, and a step of the twin uses the {kind} itself: "
        "a function that it keeps, or a hook, closes over the model or its layers, and a copy of it still does. Take "
        f"them from `self`, or pass `twin=`, a function that makes another {kind}. Got {use}."
    )
