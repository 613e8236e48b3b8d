"""The states of the random generators that every program has."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_states() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []
    numpy = sys.modules.get("numpy.random")
    return torch.get_rng_state(), devices, random.getstate(), None if numpy is None else numpy.get_state()


def equal_states(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    tensors = zip([one[0], *one[1]], [other[0], *other[1]], strict=True)
    numbers = (one[3] is None) == (other[3] is None) and (one[3] is None or _same_numpy(one[3], other[3]))
    return one[2] == other[2] and numbers and all(torch.equal(a, b) for a, b in tensors)


def _same_numpy(one: Any, other: Any) -> bool:
    return one[2:] == other[2:] and bool((one[1] == other[1]).all())


def set_random_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        sys.modules["numpy.random"].set_state(states[3])
