"""The gate step: lower the largest value of the leak gate (LSTM's forget, GRU's update gate) to a bound."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.recurrence.intervals import Interval


class GateRows(NamedTuple):
    """The rows of one gate: ``(units, features)``, ``(units, states)`` and two biases of ``(units,)``, one, or None.

    A gate that reads the input alone has no states and one bias.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None

    def top(self, high: Tensor, reach: Tensor) -> Tensor:
        """``high + reach + b``: the largest pre-activations, from the largest products with inputs and states."""
        return sum(self.biases, start=high + reach)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """The biases that there are."""
        return tuple(bias for bias in self[2:] if bias is not None)

    def of(self, units: Tensor) -> GateRows:
        """Return the rows of some units."""
        biases = (None if bias is None else bias[units] for bias in (self.bias_ih, self.bias_hh))
        return GateRows(self.weight_ih[units], self.weight_hh[units], *biases)

    def replaced(self, units: Tensor, rows: GateRows) -> GateRows:
        """Return the gate with other rows for some units."""
        pairs = zip(self[2:], rows[2:], strict=True)
        biases = (old if old is None or new is None else old.index_copy(0, units, new) for old, new in pairs)
        weights = (old.index_copy(0, units, new) for old, new in zip(self[:2], rows[:2], strict=True))
        return GateRows(*weights, *biases)


def leave_worst_input(
    rows: GateRows, worst: Tensor, image: Tensor | None, state_bound: float, bound: float
) -> GateRows:
    r"""Nearest ``(u, w)`` with ``sigmoid(u x + max(w h) + b) <= bound`` for one input per unit, the worst one.

    Moving along that input changes what the gate does to it and to inputs like it, and little else; scaling the row
    or lowering its bias would change the gate for every input. The biases stay, the worst input may be another one
    afterwards: :func:`bound_gate` finishes.

    Args:
        rows: The gate's weights.
        worst: The input at which each row is largest, ``(units, features)``.
        image: Output projection ``(states, units)``, if there is one: ``h = image.T m``.
        state_bound: States, or ``m``, have entries of at most this size.
        bound: In (0, 1).
    """
    product = rows.weight_hh if image is None else rows.weight_hh @ image
    slope = state_bound * (product.sign() if image is None else product.sign() @ image.mT)
    top = (rows.weight_ih * worst).sum(1) + state_bound * product.abs().sum(1)
    # At most what vanishes with the row: the biases carry the rest.
    excess = (sum(rows.biases, start=top) - math.log(bound / (1 - bound))).minimum(top).clamp(min=0)
    size = worst.square().sum(1) + slope.square().sum(1)
    step = (excess / size.clamp(min=torch.finfo(size.dtype).tiny))[:, None]
    hidden = rows.weight_hh - step * slope
    # An entry that would change its sign ends at 0, as in soft-thresholding.
    hidden = torch.where(hidden * rows.weight_hh < 0, torch.zeros_like(hidden), hidden)
    if image is not None:  # the image of a row whose entries all shrink may still grow, and budgets rest on it
        size = product.abs().sum(1) / (hidden @ image).abs().sum(1).clamp(min=torch.finfo(hidden.dtype).tiny)
        hidden = hidden * size.clamp(max=1)[:, None]
    return rows._replace(weight_ih=rows.weight_ih - step * worst, weight_hh=hidden)


def bound_gate(rows: GateRows, drive: Interval, reach: Tensor, bound: float) -> GateRows:
    r"""Nearest rows of the same directions with ``max sigmoid(w x + u h + b) <= bound`` over all inputs and states.

    Per unit, with ``a = max(w x) + max(u h)``, the row is multiplied by ``s`` and each of ``n`` biases lowered by ``d``
    so that ``s a + b - n d <= logit(bound)``, minimising ``(1 - s)^2 ||(w, u)||^2 + n d^2``. The minimum is
    ``1 - s = m a / ||(w, u)||^2``, ``d = m`` with ``m = excess / (a^2 / ||(w, u)||^2 + n)``; without biases
    ``s = logit(bound) / a``. Units within the bound are not touched.

    Args:
        rows: The gate's weights.
        drive: Interval of ``weight_ih @ x``.
        reach: Largest ``weight_hh @ h`` over the box of the states.
        bound: In (0, 1); above 1/2 if there are no biases.
    """
    limit = math.log(bound / (1 - bound))
    largest = (drive.high + reach).clamp(min=0)
    if not rows.biases:
        scale = (limit / largest.clamp(min=torch.finfo(largest.dtype).tiny)).clamp(0, 1)[:, None]
        return GateRows(rows.weight_ih * scale, rows.weight_hh * scale, None, None)
    count = len(rows.biases)
    excess = (rows.top(drive.high, reach) - limit).clamp(min=0)
    size = (rows.weight_ih.square().sum(1) + rows.weight_hh.square().sum(1)).clamp(min=torch.finfo(excess.dtype).tiny)
    multiplier = excess / (largest.square() / size + count)
    shrink = multiplier * largest / size
    # A row can at most be emptied; the biases then carry the rest.
    emptied = shrink >= 1
    shift = torch.where(emptied, (excess - largest).clamp(min=0) / count, multiplier)
    scale = torch.where(emptied, torch.zeros_like(shrink), 1 - shrink)[:, None]
    biases = (None if bias is None else bias - shift for bias in rows[2:])
    return GateRows(rows.weight_ih * scale, rows.weight_hh * scale, *biases)
