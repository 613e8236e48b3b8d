"""What a recurrent module is called with, by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn


def input_and_state(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the input and the start state of a call; None for what was left out.

    They are the first two arguments of ``forward``, whatever a subclass calls them.
    """
    given = {**dict(zip(argument_names(module), args, strict=False)), **kwargs}
    first, second = argument_names(module)
    return given.get(first), given.get(second)


def argument_names(module: nn.Module) -> tuple[str, str]:
    """Return the names of the input and of the start state among the arguments of ``forward``."""
    return _names(type(module).forward)


@lru_cache(maxsize=256)
def _names(forward: Callable[..., Any]) -> tuple[str, str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds][1:3]
    except (TypeError, ValueError):  # written in another language
        names = []
    return (names[0], names[1]) if len(names) == 2 else (names[0] if names else "input", "hx")
