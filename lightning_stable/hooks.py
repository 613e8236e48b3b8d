"""Module hooks that do not travel: a copy or a pickle of a module leaves them behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
