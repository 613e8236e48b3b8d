"""The states of the random generators that every program has."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_states() -> tuple[Any, ...]:
    """The states of torch's generators, of Python's and of NumPy's."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []
    numpy = sys.modules.get("numpy.random")
    return torch.get_rng_state(), devices, random.getstate(), None if numpy is None else numpy.get_state()


def equal_states(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether no generator has drawn a number between two states."""
    tensors = zip([one[0], *one[1]], [other[0], *other[1]], strict=True)
    return equal_numbers(one, other) and all(torch.equal(a, b) for a, b in tensors)


def equal_numbers(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether neither Python nor NumPy has drawn; what torch draws stays in tensors, whose values no trace reads."""
    if (one[3] is None) != (other[3] is None):
        return False
    numpy = one[3] is None or (one[3][2:] == other[3][2:] and bool((one[3][1] == other[3][1]).all()))
    return numpy and bool(one[2] == other[2])


def set_random_states(states: tuple[Any, ...]) -> None:
    """Put the generators back."""
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        sys.modules["numpy.random"].set_state(states[3])
