"""The gate step: lower the largest value of the leak gate (LSTM's forget, GRU's update gate) to a bound."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.recurrence.intervals import Interval


class GateRows(NamedTuple):
    """The rows of one gate: ``(units, features)``, ``(units, states)`` and two biases of ``(units,)`` or None."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def bound_gate(rows: GateRows, drive: Interval, reach: Tensor, bound: float) -> GateRows:
    r"""Nearest rows of the same directions with ``max sigmoid(w x + u h + b) <= bound`` over all inputs and states.

    Per unit, with ``a = max(w x) + max(u h)``, the row is multiplied by ``s`` and each bias lowered by ``d`` so that
    ``s a + b - 2 d <= logit(bound)``, minimising ``(1 - s)^2 ||(w, u)||^2 + 2 d^2``. The minimum is
    ``1 - s = m a / ||(w, u)||^2``, ``d = m`` with ``m = excess / (a^2 / ||(w, u)||^2 + 2)``; without biases
    ``s = logit(bound) / a``. Units within the bound are not touched.

    Args:
        rows: The gate's weights.
        drive: Interval of ``weight_ih @ x``.
        reach: Largest ``weight_hh @ h`` over the box of the states.
        bound: In (0, 1); above 1/2 if there are no biases.
    """
    limit = math.log(bound / (1 - bound))
    largest = (drive.high + reach).clamp(min=0)
    if rows.bias_ih is None or rows.bias_hh is None:
        scale = (limit / largest.clamp(min=torch.finfo(largest.dtype).tiny)).clamp(max=1)[:, None]
        return GateRows(rows.weight_ih * scale, rows.weight_hh * scale, None, None)
    excess = (drive.high + reach + rows.bias_ih + rows.bias_hh - limit).clamp(min=0)
    size = (rows.weight_ih.square().sum(1) + rows.weight_hh.square().sum(1)).clamp(min=torch.finfo(excess.dtype).tiny)
    multiplier = excess / (largest.square() / size + 2)
    shrink = multiplier * largest / size
    # A row can at most be emptied; the biases then carry the rest.
    emptied = shrink >= 1
    shift = torch.where(emptied, (excess - largest).clamp(min=0) / 2, multiplier)
    scale = torch.where(emptied, torch.zeros_like(shrink), 1 - shrink)[:, None]
    return GateRows(rows.weight_ih * scale, rows.weight_hh * scale, rows.bias_ih - shift, rows.bias_hh - shift)
