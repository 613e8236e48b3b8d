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
        parts_of = (end.chunk(parts, dim=-1) for end in self)
        return tuple(Interval(low, high) for low, high in zip(*parts_of, strict=True))

    def rows(self, which: slice) -> Interval:
        """Return some of the rows."""
        return Interval(self.low[..., which], self.high[..., which])

    def sigmoid(self) -> Interval:
        """Return the values of a gate with these pre-activations."""
        return Interval(torch.sigmoid(self.low), torch.sigmoid(self.high))

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
    """Return the largest value over the scenarios, the last dimension but one, if there is such a dimension."""
    return values if values.dim() < 2 else values.amax(-2)


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
    u = _steepest_tanh(slope_part, value_part, least, largest)
    return _one_minus(u.square()) * slope_part + u * value_part


def sigmoid_peak(value_part: Tensor, slope_part: Tensor, gate: Interval) -> Tensor:
    """``argmax over s in [low, high] of s P + s (1 - s) Q``, ``Q >= 0``: a gate cannot be steep and open at once.

    The parabola is concave, so its maximum is at the vertex ``(P + Q) / (2 Q)`` or at the end nearer to it.
    """
    vertex = (value_part + slope_part) / (2 * slope_part).clamp(min=torch.finfo(slope_part.dtype).tiny)
    return vertex.maximum(gate.low).minimum(gate.high)


def sigmoid_maximum(value_part: Tensor, slope_part: Tensor, gate: Interval, keep: Tensor | None = None) -> Tensor:
    """``max over s in [low, high] of s P + s (1 - s) Q``, see :func:`sigmoid_peak`.

    Args:
        value_part: ``P``, of any sign.
        slope_part: ``Q``, nonnegative.
        gate: Values of the gate.
        keep: ``1 - high`` without cancellation, where a large ``Q`` would make an error of it count.
    """
    s = sigmoid_peak(value_part, slope_part, gate)
    rest = _one_minus(s) if keep is None else (1 - s).maximum(keep)
    return s * value_part + s * rest * slope_part


def product_peak(slope_part: Tensor, value_part: Tensor, gate: Interval, tanh: Interval) -> tuple[Tensor, Tensor]:
    """``argmax over (s, u) of s (1 - u^2) P + s (1 - s) u Q``, ``P, Q >= 0``, in the box ``gate`` times ``tanh``.

    These are the slopes of a product of a sigmoid ``s`` and ``|tanh| = u``. For fixed ``s`` or ``u`` the function is
    a concave parabola in the other, which gives the maxima on the four edges. Inside, both derivatives vanish where
    ``s = 1 - 2 x u`` and ``3 x u^2 - u + x = 0`` with ``x = P / Q``; there the Hessian has the sign of
    ``3 u^2 - 1``, and the product of the two roots is 1/3, so the larger root alone can be a maximum.

    With both in [0, 1] the maximum is ``max(P, Q / 4)``: for ``Q = 4 P`` it is ``P``, as
    ``s (1 + 4 (1 - s)^2) = 1 - y (1 - 2 y)^2`` with ``y = 1 - s``, and it is monotone in ``P`` and in ``Q``.
    """
    points = _product_points(slope_part, value_part, gate, tanh)
    best = _product_slopes(slope_part, value_part, *points).argmax(0, keepdim=True)
    s, u = (part.gather(0, best)[0] for part in points)
    return s, u


def product_maximum(slope_part: Tensor, value_part: Tensor, gate: Interval, tanh: Interval) -> Tensor:
    """``max over (s, u) of s (1 - u^2) P + s (1 - s) u Q``, see :func:`product_peak`."""
    points = _product_points(slope_part, value_part, gate, tanh)
    return _product_slopes(slope_part, value_part, *points).amax(0)


def _product_points(slope_part: Tensor, value_part: Tensor, gate: Interval, tanh: Interval) -> tuple[Tensor, Tensor]:
    """Return the points of the box among which the maximum is, shapes ``(5, ...)``."""
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        *(value.shape for value in (slope_part, value_part, *gate, *tanh))
    )
    slope_part, value_part = slope_part.expand(shape), value_part.expand(shape)
    gate, tanh = (Interval(low.expand(shape), high.expand(shape)) for low, high in (gate, tanh))
    tiny = torch.finfo(slope_part.dtype).tiny
    x = (slope_part / value_part.clamp(min=tiny)).clamp(max=1)  # from 12^-1/2 on there is no root
    inside = (1 + (1 - 12 * x.square()).clamp(min=0).sqrt()) / (6 * x).clamp(min=tiny)
    inside = inside.maximum(tanh.low).minimum(tanh.high)
    s_ends, u_ends = torch.stack(gate), torch.stack(tanh)
    u = _steepest_tanh(slope_part, (1 - s_ends) * value_part, *tanh)
    s = sigmoid_peak(_one_minus(u_ends.square()) * slope_part, u_ends * value_part, gate)
    s_inside = (1 - 2 * x * inside).maximum(gate.low).minimum(gate.high)
    return torch.cat((s_ends, s, s_inside[None])), torch.cat((u, u_ends, inside[None]))


def _product_slopes(slope_part: Tensor, value_part: Tensor, s: Tensor, u: Tensor) -> Tensor:
    return s * (_one_minus(u.square()) * slope_part + _one_minus(s) * u * value_part)


def _steepest_tanh(slope_part: Tensor, value_part: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """``argmax over u in [least, largest] of (1 - u^2) P + u Q``."""
    vertex = value_part / (2 * slope_part).clamp(min=torch.finfo(slope_part.dtype).tiny)
    return vertex.maximum(least).minimum(largest)


def _one_minus(value: Tensor) -> Tensor:
    """``1 - value``, never rounded down to 0."""
    return (1 - value).clamp(min=torch.finfo(value.dtype).eps)
