"""Enclosures: the values of one run, and intervals that hold those of all runs it is compared with.

Gates are affine in state and input together, and their nonlinearities are monotone; so the ends of an interval bound
what lies between, and a product or a mean of independent intervals is largest at their ends. Nothing is linearised.

Rounding is part of the intervals. They hold the values of exact runs, and of runs that are rounded like this one, in
any order of summation, if sigmoid and tanh are off by at most ``4 eps``; ``eps`` is the distance from 1 to the next
number. The ends of a tanh come from a sigmoid, for a quarter of the time, and are off by up to ``9 eps``. A product
with ``n`` entries is off by at most ``(n + 8) eps / 2`` times that of the absolute values (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1); the 8 covers terms of second order, the bias and the sum of two
products. Products must not be rounded to fewer bits than the dtype has, as TF32 and autocast do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# In units of `eps`: another run and the interval itself round two functions, a product and a sum each. With a tanh at
# its end that is 10 |c| + 23 for an LSTM's f c + i g, 22 for its o tanh(c), and 12 (|h| + |n|) + 13 for a mean of h and
# n, of 16 times |c| + 2, 2, and |h| + |n| + 1.
ROUNDING = 16


@dataclass(frozen=True)
class Around:
    """A value of a run, and ``low <= value <= high`` for the same value of other runs, all of one shape."""

    value: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def exactly(cls, value: Tensor) -> Around:
        """Return a value that all runs share."""
        return cls(value, value, value)

    @property
    def radius(self) -> Tensor:
        """The largest distance of another value from that of the run."""
        return torch.maximum(self.high - self.value, self.value - self.low)

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of another run."""
        return torch.maximum(self.high, -self.low)

    def __add__(self, other: Around) -> Around:
        return Around(self.value + other.value, self.low + other.low, self.high + other.high)

    def map(self, function: Callable[[Tensor], Tensor]) -> Around:
        """Apply a function that nowhere decreases."""
        return Around(function(self.value), function(self.low), function(self.high))

    def tanh(self) -> Around:
        """Apply tanh; the values are those of ``torch.tanh``."""
        return Around(torch.tanh(self.value), _tanh(self.low), _tanh(self.high))

    def gated(self, gate: Around) -> Around:
        """Multiply by a gate, which is nowhere negative."""
        return Around(
            gate.value * self.value,
            torch.minimum(gate.low * self.low, gate.high * self.low),
            torch.maximum(gate.low * self.high, gate.high * self.high),
        )

    def within(self, radius: Tensor) -> Around:
        """Cut back to a distance from the value of the run."""
        radius = radius + _eps(self.value) * self.value.abs()  # the ends below are rounded
        return Around(
            self.value, torch.maximum(self.low, self.value - radius), torch.minimum(self.high, self.value + radius)
        )

    def widened(self, size: Tensor | float) -> Around:
        """Add what the rounding of functions, products and sums of this size can do."""
        size, eps = size + torch.finfo(self.value.dtype).tiny, ROUNDING * _eps(self.value)
        if not isinstance(size, Tensor):
            return Around(self.value, self.low - eps * size, self.high + eps * size)
        return Around(self.value, torch.sub(self.low, size, alpha=eps), torch.add(self.high, size, alpha=eps))


@dataclass(frozen=True)
class Ball:
    """A value of a run, and how far the others are from it; of one shape, or one radius for the whole last dimension.

    This is what an affine map makes of intervals: their middle does not matter, only how far they reach.
    """

    value: Tensor
    radius: Tensor

    def __add__(self, other: Ball) -> Ball:
        return Ball(self.value + other.value, self.radius + other.radius)

    def split(self, sizes: Sequence[int]) -> tuple[Ball, ...]:
        """Split the last dimension into parts of these sizes."""
        values = torch.split(self.value, list(sizes), dim=-1)
        if self.radius.shape[-1] != self.value.shape[-1]:
            return tuple(Ball(value, self.radius) for value in values)
        return tuple(Ball(*part) for part in zip(values, torch.split(self.radius, list(sizes), dim=-1), strict=True))

    def chunk(self, parts: int) -> tuple[Ball, ...]:
        """Split the last dimension into equal parts, one per gate."""
        return self.split((self.value.shape[-1] // parts,) * parts)

    def map(self, function: Callable[[Tensor], Tensor]) -> Around:
        """Apply a function that nowhere decreases."""
        return Around(function(self.value), function(self.value - self.radius), function(self.value + self.radius))

    def tanh(self) -> Around:
        """Apply tanh."""
        return self.around.tanh()

    @property
    def around(self) -> Around:
        """The same as intervals."""
        return Around(self.value, self.value - self.radius, self.value + self.radius)


def mix(gate: Around, kept: Around, new: Around) -> Around:
    """``z h + (1 - z) n`` increases in ``h`` and ``n`` and is affine in ``z``: largest at one end of the gate."""
    low, high = kept.low - new.low, kept.high - new.high
    return Around(
        torch.addcmul(new.value, gate.value, kept.value - new.value),
        torch.minimum(torch.addcmul(new.low, gate.low, low), torch.addcmul(new.low, gate.high, low)),
        torch.maximum(torch.addcmul(new.high, gate.low, high), torch.addcmul(new.high, gate.high, high)),
    ).widened(kept.magnitude + new.magnitude + 1)


@dataclass(frozen=True)
class Affine:
    """``W x + b`` with what bounds its changes."""

    weight: Tensor
    bias: Tensor | None
    growth: Tensor  # |W|, and what rounding adds to a product with it
    lost: Tensor | None  # gamma |b|
    losses: tuple[Tensor, Tensor | float]  # gamma times the largest Euclidean norm of a row, and the largest bias

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Affine:
        """Return the map, ready to be applied many times."""
        gamma = _gamma(weight)
        lost = None if bias is None else gamma * bias.abs()
        losses = gamma * torch.linalg.vector_norm(weight, dim=1).amax(0), 0.0 if lost is None else lost.amax(0)
        return cls(weight, bias, (1 + 2 * gamma) * weight.abs(), lost, losses)

    def __call__(self, values: Around | Ball | Tensor) -> Ball:
        """``|W x - W x'| <= |W| radius``; a tensor is a value that all runs share, and only rounding is left of it."""
        if isinstance(values, Tensor):
            return Ball(F.linear(values, self.weight, self.bias), self.rounding(values))
        spread = torch.add(values.radius, values.value.abs(), alpha=self.gamma)
        return Ball(F.linear(values.value, self.weight, self.bias), F.linear(spread, self.growth, self.lost))

    @property
    def gamma(self) -> float:
        """How far two runs can round a product apart, relative to that of the absolute values."""
        return _gamma(self.weight)

    def rounding(self, values: Tensor) -> Tensor:
        """``gamma (|W| |x| + |b|)`` at most, for all rows, by Cauchy and Schwarz: no second product."""
        size: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        return size * self.losses[0] + self.losses[1]


def euclidean(radius: Tensor) -> Tensor:
    """``||radius||_2``, not rounded down."""
    norm: Tensor = torch.linalg.vector_norm(radius, dim=-1)
    return norm * (1 + (radius.shape[-1] + 8) * _eps(radius))


def _tanh(end: Tensor) -> Tensor:
    """``tanh(end) = 1 - 2 sigmoid(-2 end)``; doubling is exact."""
    return 1 - 2 * torch.sigmoid(-2 * end)


def _gamma(weight: Tensor) -> float:
    return (weight.shape[1] + 8) * _eps(weight)


def _eps(values: Tensor) -> float:
    return torch.finfo(values.dtype).eps
