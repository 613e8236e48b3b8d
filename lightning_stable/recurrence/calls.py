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
    names, positions = _arguments(type(module).forward)
    given = {**dict(zip(positions, args, strict=False)), **kwargs}
    return given.get(names[0]), given.get(names[1])


def argument_names(module: nn.Module) -> tuple[str, str]:
    """Return the names of the input and of the start state among the arguments of ``forward``."""
    return _arguments(type(module).forward)[0]


@lru_cache(maxsize=256)
def _arguments(forward: Callable[..., Any]) -> tuple[tuple[str, str], tuple[str, ...]]:
    """The names of input and state, and those of all arguments that may be given by position, in their order."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):  # written in another language
        parameters = []
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    usual = [name for name in names[1:] if name in _STATES]
    both = names[0] if names else "input", (usual or names[1:] or ["hx"])[0]
    positions = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return both, positions or both
