"""Hooks: those of modules do not travel with a copy or a pickle, and those of optimizers find the one that steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_stable.copying import parts_of

# A wrapper may wrap a wrapper; deeper than this nobody goes.
_DEEPEST = 3


class Hook:
    """A hook that stays with its module: a copy of the module, or a pickled one, carries one that does nothing."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Call the function; what it returns is ignored, so a hook never replaces inputs or outputs."""
        self._function(*args)

    def __reduce__(self) -> tuple[type[Hook], tuple[Callable[..., object]]]:
        return Hook, (_nothing,)


def _nothing(*args: Any) -> None:
    pass


def after_steps(optimizer: Any, function: Callable[[Any, Any, Any], None]) -> RemovableHandle | None:
    """Call a function after every step of an optimizer, with torch's own hook.

    An object that wraps an optimizer, and calls its ``step`` without being one itself, has no hooks; then those of the
    optimizer inside are used. What the wrapper does after that step comes after the hook.

    Args:
        optimizer: The optimizer, or an object around one.
        function: Takes the optimizer and the arguments of its step.

    Returns:
        The handle that removes the hook; None if there is no optimizer of torch's to hook.
    """
    try:
        handle: RemovableHandle = optimizer.register_step_post_hook(function)
    except AttributeError:  # a subclass that did not call `super().__init__` has none either
        inner = _inside(optimizer, _DEEPEST)
        return after_steps(inner[0], function) if inner else None
    return handle


def _inside(wrapper: Any, depth: int) -> list[Optimizer]:
    """The optimizers in the attributes of an object, the last first: it is the last to step."""
    held = getattr(wrapper, "__dict__", {}).values()
    found = [part for part in parts_of(Optimizer, list(held)) if part is not wrapper]
    if found or not depth:
        return found
    wrappers = [value for value in held if hasattr(value, "param_groups") and value is not wrapper]
    return [optimizer for value in wrappers for optimizer in _inside(value, depth - 1)]
