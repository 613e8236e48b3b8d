"""An initialisation for models that are to be stable: nearer to the set, with memories of many lengths."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

from lightning_stable import checks
from lightning_stable.recurrence import GatedRecurrence, find_recurrences
from lightning_stable.sharded import is_sharded

_Module = TypeVar("_Module", bound=nn.Module)
# A time constant of one step is a gate that is always closed, whose bias has no end.
_LEAST = 0.1


@torch.no_grad()
def spread_time_scales_(module: _Module, longest: float = 50.0) -> _Module:
    """Make recurrent weights small, and spread the time constants of leak gates from 1 to ``longest`` steps, in place.

    Torch's initial weights are made for unconstrained models, and the first projection throws most of them away. Here
    the recurrent weights are divided by the root of the number of units, and the bias of the leak gate (LSTM's forget,
    GRU's update gate) is ``log(c - 1)`` for time constants ``c`` drawn evenly, so that a difference halves within
    ``0.7 c`` steps where inputs and states say nothing. Call it before the training, as the functions of
    ``torch.nn.init``.

    Source: Tallec & Ollivier, *Can recurrent neural networks warp time?* (2018), section 2, whose biases are drawn so.

    Args:
        module: A model whose recurrent layers are all gated (LSTM, GRU, UGRNN, intersection RNN) and have biases.
        longest: The longest time constant, in steps, above 1. A projection with the default ``gate_bound`` lowers those
            above ``1 / (1 - rate ** 2)`` again, 50 at a rate of 0.99.

    Returns:
        The module.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If the module has no recurrence, one that is not gated, one without biases, or sharded parameters;
            or if ``longest`` is at most 1. Nothing is changed then.

    Example:
        >>> model = spread_time_scales_(nn.LSTM(8, 32))
    """
    longest = checks.number("longest", longest, "(1, inf)")
    recurrences = find_recurrences(checks.module("module", module))
    gated = [r for r in recurrences if isinstance(r, GatedRecurrence) and "bias_ih" in r.parameters()]
    if others := [r for r in recurrences if r not in gated]:
        raise ValueError(
            "`module` must have recurrent layers with gates and biases only. "
            f"Got {', '.join(f'{r.name!r} ({r.cell})' for r in others)}: pass the modules of the others one by one."
        )
    if any(is_sharded(value) for value in module.parameters()):
        raise ValueError("`module` must not have sharded parameters. Got some: call this before it is sharded.")
    for recurrence in gated:
        weights, gates = recurrence.parameters(), len(recurrence.gates)
        weights["weight_hh"].mul_(1 / math.sqrt(weights["weight_hh"].shape[1]))
        bias = weights["bias_ih"].chunk(gates)[recurrence.gates.index(recurrence.leak)]
        bias.copy_(((longest - 1) * torch.rand_like(bias)).clamp(min=_LEAST).log())
    return module
