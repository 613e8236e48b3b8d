"""Intervals of gate pre-activations, and what sigmoid and tanh can do on them.

Everything a certificate knows about the inputs enters through the interval of ``weight_ih @ x`` per gate row.
All functions are elementwise and work in the dtype they are given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """Elementwise bounds ``low <= value <= high``, both of one shape.

    Those of gates have shape ``(rows,)`` or ``(scenarios, rows)``. With scenarios, for every admissible input and every
    unit there is one that holds all gates of the unit at that input.
    """

    low: Tensor
    high: Tensor

    def shift(self, offset: Tensor) -> Interval:
        """Move the interval by ``offset``."""
        return Interval(self.low + offset, self.high + offset)

    def widen(self, radius: Tensor) -> Interval:
        """Add ``[-radius, radius]``."""
        return Interval(self.low - radius, self.high + radius)

    def chunk(self, parts: int) -> tuple[Interval, ...]:
        """Split along the last dimension into equal parts, one per gate."""
        pairs = zip(self.low.chunk(parts, -1), self.high.chunk(parts, -1), strict=True)
        return tuple(Interval(low, high) for low, high in pairs)

    def rows(self, which: slice) -> Interval:
        """Return some of the rows."""
        return Interval(self.low[..., which], self.high[..., which])

    def times(self, other: Interval) -> Interval:
        """Return the interval of all products: its ends are among the four products of the ends."""
        corners = torch.stack(
            (self.low * other.low, self.low * other.high, self.high * other.low, self.high * other.high)
        )
        return Interval(corners.amin(0), corners.amax(0))

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def distance_to_zero(self) -> Tensor:
        """The smallest absolute value (0 when the interval contains 0)."""
        return torch.maximum(self.low, -self.high).clamp(min=0)


def worst(values: Tensor) -> Tensor:
    """Return the largest value of every unit over the scenarios, from shape ``(units,)`` or ``(scenarios, units)``."""
    return values if values.dim() == 1 else values.amax(-2)


# Slopes are written as products of sigmoids: 1 - tanh(x)^2 and s(1 - s) cancel to 0 far from the origin,
# and a slope bound rounded down to 0 would be a false promise.
def sigmoid_slope(pre: Interval) -> Tensor:
    """``max sigmoid'`` on the interval, at most 1/4."""
    nearest = pre.distance_to_zero
    return torch.sigmoid(nearest) * torch.sigmoid(-nearest)


def tanh_slope(pre: Interval) -> Tensor:
    """``max tanh'`` on the interval, at most 1."""
    nearest = 2 * pre.distance_to_zero
    return 4 * torch.sigmoid(nearest) * torch.sigmoid(-nearest)


def tanh_magnitude(pre: Interval) -> Tensor:
    """``max |tanh|`` on the interval, at most 1."""
    return torch.tanh(pre.magnitude)


def tanh_least(pre: Interval) -> Tensor:
    """``min |tanh|`` on the interval."""
    return torch.tanh(pre.distance_to_zero)


def saturating(slope_part: Tensor, value_part: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """``max over u in [least, largest] of (1 - u^2) P + u Q``: tanh cannot be steep and large at once.

    ``slope_part`` is the factor of ``tanh'`` without a slope bound of its own: away from 0 that bound is
    ``1 - least^2`` already, and counting it twice would lose what ``value_part`` adds there.
    """
    limits = torch.finfo(slope_part.dtype)
    u = (value_part / (2 * slope_part).clamp(min=limits.tiny)).maximum(least).minimum(largest)
    return (1 - u.square()).clamp(min=limits.eps) * slope_part + u * value_part
