"""What a recurrent module is called with, by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

# What the argument of the start state is called, in torch and elsewhere.
_STATES = ("hx", "state", "states", "hidden", "h0", "h_0", "hidden_state", "initial_state")


def input_and_state(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the input and the start state of a call; None for what was left out.

    The input is the first argument of ``forward``. The state has one of the usual names, or is the second argument.
    """
    first, second = argument_names(module)
    given = {**dict(zip(_positions(type(module).forward) or (first, second), args, strict=False)), **kwargs}
    return given.get(first), given.get(second)


def argument_names(module: nn.Module) -> tuple[str, str]:
    """Return the names of the input and of the start state among the arguments of ``forward``."""
    return _names(type(module).forward)


@lru_cache(maxsize=256)
def _positions(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that may be given by position; none if ``forward`` takes any number of them."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in positional)


@lru_cache(maxsize=256)
def _names(forward: Callable[..., Any]) -> tuple[str, str]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind not in variable][1:]
    except (TypeError, ValueError):  # written in another language
        names = []
    usual = [name for name in names[1:] if name in _STATES]
    return names[0] if names else "input", (usual or names[1:] or ["hx"])[0]
