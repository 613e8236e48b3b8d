"""No further than needed: a gated recurrence inside the set goes back towards where it came from.

Budgets are frozen at the weights before a projection, which are larger than those after it, so a projection ends well
inside the set. On the segment ``after + s (before - after)`` every row norm and every gate rises with ``s``, hence so
does the rate of the unit, and the largest ``s`` of every unit is found by false position and bisection in turn; the
certificate itself decides what is inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_stable.recurrence.base import GatedRecurrence, Weights
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability.inputs.joint import joint_drive
from lightning_stable.stability.inputs.resolve import Layer
from lightning_stable.stability.projection.recurrence import Target

_UNIT_STEPS = 50
_COMMON_STEPS = 30
_EXACT_STEPS = 10
# Room below the target, in rate or gate, that need not be used.
_LITTLE = 1e-5


def give_back(layer: Layer, changed: Weights, target: Target) -> dict[str, Tensor]:
    """Return weights between those of the layer and ``changed``, as near to the former as the target allows.

    First whole units go back as far as rate and gate bound allow, then their rows without those of the leak gate. What
    ``row`` certifies, ``tight`` certifies, too; its units go back once more, by a common share, and those of ``l2``
    only so. The conditions of Miller and Hardt are met as they are.

    Args:
        layer: The layer before the projection.
        changed: New weights by role, inside the set.
        target: What the weights must satisfy.
    """
    recurrence = layer.recurrence
    if not isinstance(recurrence, GatedRecurrence) or target.method == "miller-hardt":
        return dict(changed)
    segment = _Segment(layer, recurrence, changed, target)
    share = torch.zeros_like(recurrence.row_norms(layer.weights))
    # What is inside in another norm only must not go back unit by unit in this one.
    known = target.norm != "l2" and segment.rates(share) is not None
    if known and (target.norm == "row" or (segment.units_room(share) >= 0).all()):
        share = segment.largest(share, torch.ones_like(share), segment.smallest_room, _UNIT_STEPS)
        share = segment.largest(share, segment.without_leak, segment.units_room, _UNIT_STEPS)
    if target.norm != "row" or segment.rates(share) is None:
        gate = segment.largest(torch.zeros_like(share), segment.leak, segment.gate_room, _UNIT_STEPS)
        share = segment.largest(share, gate + segment.without_leak, segment.room, _COMMON_STEPS)
    segment.is_exact = True
    room = segment.units_room if target.norm == "row" and segment.rates(share) is not None else segment.room
    return segment.at(segment.largest(torch.zeros_like(share), share, room, _EXACT_STEPS))


class _Segment:
    """The weights between two ends; shares of the way have the shape ``(gates, units)``."""

    def __init__(self, layer: Layer, recurrence: GatedRecurrence, changed: Weights, target: Target) -> None:
        self.layer, self.recurrence, self.target = layer, recurrence, target
        self.changed = {role: value for role, value in changed.items() if role in recurrence.projected_roles}
        assert layer.inputs is not None
        rows = [recurrence.driven_rows(weights) for weights in ({**layer.weights, **changed}, layer.weights)]
        pairing = recurrence.pairing(layer.weights)
        # Whether drives are those of the certificate, which cuts the inputs anew at every share.
        self.is_exact = False
        # Largest products are convex in the rows, so those of the ends bound those in between.
        if pairing is None:
            self.ends = [layer.inputs.drive(end) for end in rows]
        else:  # gates of both ends at one input
            both = joint_drive(layer.inputs, torch.cat(rows), pairing, between=bool(layer.below))
            self.ends = [both.rows(slice(len(rows[0]))), both.rows(slice(len(rows[0]), None))]
        self.leak = torch.zeros_like(recurrence.row_norms(layer.weights))
        self.leak[recurrence.gates.index(recurrence.leak)] = 1
        self.without_leak = 1 - self.leak
        # A gate that was lowered to its bound may lie a rounding error above it.
        assert target.gate_bound is not None
        self.highest = self.gates(torch.zeros_like(self.leak)).clamp(min=target.gate_bound)

    def at(self, share: Tensor) -> dict[str, Tensor]:
        """Return the weights at these shares, those of the layer bit for bit at 1."""

        def between(after: Tensor, before: Tensor) -> Tensor:
            part = share.flatten().view(-1, *[1] * (after.dim() - 1))
            return torch.where(part < 1, after + part * (before - after), before)

        before = self.layer.weights
        return {role: between(after, before[role]) for role, after in self.changed.items()}

    def _drive(self, share: Tensor) -> Interval:
        after, before = self.ends
        part = share.new_zeros(after.high.shape[-1])
        part[: share.numel()] = share.flatten()
        return Interval(*(low + part * (high - low) for low, high in zip(after, before, strict=True)))

    def _here(self, share: Tensor) -> tuple[dict[str, Tensor], Interval]:
        weights = {**self.layer.weights, **self.at(share)}
        if not self.is_exact:
            return weights, self._drive(share)
        drive = replace(self.layer, weights=weights).drive
        assert drive is not None
        return weights, drive

    def rates(self, share: Tensor) -> Tensor | None:
        """Return the rates of the units."""
        return self.recurrence.unit_rates(*self._here(share), state_bound=self.layer.state_bound)

    def gates(self, share: Tensor) -> Tensor:
        """Return the largest values of the leak gates."""
        return self.recurrence.leak_maximum(*self._here(share), self.target.state_bound)

    def gate_room(self, share: Tensor) -> Tensor:
        """Return how far the leak gates are below their bounds; negative above."""
        return self.highest - self.gates(share)

    def _rooms(self, share: Tensor) -> tuple[Tensor, Tensor]:
        rates = self.rates(share)
        assert rates is not None
        return self.target.rate - rates, self.gate_room(share)

    def units_room(self, share: Tensor) -> Tensor:
        """Return how far below the target the rates of units are; negative too where their gate is above its bound."""
        rates, gates = self._rooms(share)
        return torch.where(gates < 0, gates, rates)

    def smallest_room(self, share: Tensor) -> Tensor:
        """Return how far inside the units are, by rate or by gate: there is no more to gain for one at either bound."""
        return torch.minimum(*self._rooms(share))

    def room(self, share: Tensor) -> Tensor:
        """Return how far below the target's rate its certificate is."""
        weights, drive = self._here(share)
        found = self.recurrence.contraction(weights, drive, norm=self.target.norm, state_bound=self.layer.state_bound)
        return self.target.rate - found.rate

    def largest(self, start: Tensor, end: Tensor, room: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        """``start`` raised to ``s end``, where that is more, for nearly the largest ``s`` in [0, 1] that leaves room.

        ``s`` is a number for each unit where ``room`` says how much each has, and a common one where it is that of all.
        """

        def raised(s: Tensor) -> Tensor:
            return start.maximum(s * end)

        low, high = torch.zeros_like(start[0]), torch.ones_like(start[0])
        outside = room(raised(high))
        whole = outside >= 0
        if whole.all():
            return raised(high)
        inside = torch.full_like(outside, torch.inf)
        for step in range(steps):
            # A straight line between the ends meets 0 there; where one is not finite, and every other time, the middle.
            fraction = (inside / (inside - outside)).nan_to_num(0.5) if step % 2 else torch.full_like(outside, 0.5)
            trial = low + fraction.clamp(0.02, 0.98) * (high - low)
            found = room(raised(trial))
            fits = found >= 0
            low, high = torch.where(fits, trial, low), torch.where(fits, high, trial)
            inside, outside = torch.where(fits, found, inside), torch.where(fits, outside, found)
            if ((inside <= _LITTLE) | whole).all():
                break
        return raised(torch.where(whole, torch.ones_like(low), low))
