"""No further than needed: a gated recurrence inside the set goes back towards where it came from.

Budgets are frozen at the weights before a projection, which are larger than those after it, so a projection ends well
inside the set. On the segment ``after + s (before - after)`` every row norm and every gate rises with ``s``, hence so
does the rate of the unit, and bisection finds the largest ``s`` of every unit; the certificate itself decides what is
inside.
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

_UNIT_BISECTIONS = 25
_COMMON_BISECTIONS = 15
_EXACT_BISECTIONS = 5


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
    if known and (target.norm == "row" or segment.units_fit(share).all()):
        share = segment.largest(share, torch.ones_like(share), segment.units_fit, _UNIT_BISECTIONS)
        share = segment.largest(share, segment.without_leak, segment.units_fit, _UNIT_BISECTIONS)
    if target.norm != "row" or segment.rates(share) is None:
        gate = segment.largest(torch.zeros_like(share), segment.leak, segment.gate_fits, _UNIT_BISECTIONS)
        share = segment.largest(share, gate + segment.without_leak, segment.fits, _COMMON_BISECTIONS)
    segment.is_exact = True
    fits = segment.units_fit if target.norm == "row" and segment.rates(share) is not None else segment.fits
    return segment.at(segment.largest(torch.zeros_like(share), share, fits, _EXACT_BISECTIONS))


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

    def gate_fits(self, share: Tensor) -> Tensor:
        """Return for which units the leak gate is within its bound."""
        return self.gates(share) <= self.highest

    def units_fit(self, share: Tensor) -> Tensor:
        """Return which units are inside."""
        rates = self.rates(share)
        assert rates is not None
        return (rates <= self.target.rate) & self.gate_fits(share)

    def fits(self, share: Tensor) -> Tensor:
        """Return whether the certificate of the target has its rate."""
        weights, drive = self._here(share)
        found = self.recurrence.contraction(weights, drive, norm=self.target.norm, state_bound=self.layer.state_bound)
        return found.rate <= self.target.rate

    def largest(self, start: Tensor, end: Tensor, fits: Callable[[Tensor], Tensor], bisections: int) -> Tensor:
        """``start`` raised to ``s end``, where that is more, for the largest ``s`` in [0, 1] that fits.

        ``s`` is a number for each unit where ``fits`` says which units do, and a common one where it says whether all
        do.
        """

        def raised(s: Tensor) -> Tensor:
            return start.maximum(s * end)

        one = torch.ones_like(start[0])
        whole = fits(raised(one))
        if whole.all():
            return raised(one)
        low, high = torch.zeros_like(one), one
        for _ in range(bisections):
            middle = (low + high) / 2
            fit = fits(raised(middle))
            low, high = torch.where(fit, middle, low), torch.where(fit, high, middle)
        return raised(torch.where(whole, one, low))
