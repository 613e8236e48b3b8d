"""Cells whose state is a gated mean of itself and a candidate, ``h' = (1 - z) n + z h``: what they share.

The leak gate and the candidate enter with value and slope at the same point. With ``v_j |dh|`` for ``|dh_j|``, ``S``
the bound on the states, and ``A_j`` such that the candidate's pre-activation changes by ``A_j |dh|`` and ``Z_j`` for
the leak gate's, the rows of the Jacobian obey::

    |dh'_j| <= T_j |dh|    T_j = max over z of ( z v_j + (1 - z) G_j(z) )
                           G_j(z) = max over u of ( (1 - u^2) A_j + z (u + S) Z_j )    u = |n_j|

``G`` is a maximum of lines, so it is convex and lies below its chord from 0 to the largest ``z``, where the two meet.
With the chord in place of ``G`` the maximum over ``z`` is that of a concave parabola; the largest ``z`` is the worst
wherever ``T_j <= v_j``. So the state map contracts at ``max_j T_j / v_j`` in the maximum norm with weights ``v``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import BOX_ROUNDS, Budget, Contraction, GatedRecurrence, State, Weights
from lightning_stable.recurrence.intervals import (
    Interval,
    saturating,
    sigmoid_maximum,
    tanh_least,
    tanh_magnitude,
    tanh_slope,
    worst,
)

_TIGHT_ITERATIONS = 60


class Bounds(NamedTuple):
    """Per-unit bounds, each of shape ``(..., units)``; the last two of cells with a reset gate."""

    z: Interval
    keep: Tensor  # 1 - z, computed without cancellation
    n: Interval  # |tanh|
    slope_n: Tensor
    state: float | Tensor
    r: Interval | None = None
    q: Tensor | None = None  # the largest absolute value of what r multiplies

    @classmethod
    def of(
        cls,
        leak: Interval,
        candidate: Interval,
        state_bound: float | Tensor,
        leak_bound: float | None,
        r: Interval | None = None,
        q: Tensor | None = None,
    ) -> Bounds:
        """Return the bounds that follow from the pre-activations of leak gate and candidate."""
        z, keep = torch.sigmoid(leak.high), torch.sigmoid(-leak.high)
        if leak_bound is not None:
            z, keep = z.clamp(max=leak_bound), keep.clamp(min=1 - leak_bound)
        return cls(
            z=Interval(torch.sigmoid(leak.low).minimum(z), z),
            keep=keep,
            n=Interval(tanh_least(candidate), tanh_magnitude(candidate)),
            slope_n=tanh_slope(candidate),
            state=state_bound,
            r=r,
            q=q,
        )

    def change(self, hidden: Tensor, sums: Tensor, driven: Tensor | float = 0.0) -> Tensor:
        """``T``, the bound on the change of ``h``.

        With a reset gate ``A`` is ``max over r of (r A_n + r (1 - r) q R)``, once more with value and slope together.

        Args:
            hidden: The change ``v`` of ``h`` before the step, shape ``(..., units)``.
            sums: The changes of the pre-activations that come from ``h``, ``(..., gates * units)``.
            driven: The change of the candidate's pre-activation that comes from the input.
        """
        *reset, update, candidate = sums.chunk(2 if self.r is None else 3, -1)
        if self.r is not None and self.q is not None:
            candidate = sigmoid_maximum(candidate, self.q * reset[0], self.r)
        steep, update = driven + candidate, self.z.high * update
        closed = self.slope_n * steep  # G(0)
        open_ = saturating(steep, update, *self.n) + update * self.state
        chord = (open_ - closed).clamp(min=0) / self.z.high.clamp(min=torch.finfo(closed.dtype).tiny)
        return closed + sigmoid_maximum(hidden - closed, chord, self.z, self.keep)

    def coefficients(self) -> Tensor:
        """Return the factors of the gates' row norms in a linear bound on the coupling, shape ``(gates, units)``."""
        update = worst(self.z.high * (self.state + self.n.high))
        if self.r is None or self.q is None:
            return torch.stack((update, worst(self.slope_n)))
        return torch.stack((worst(self.slope_n * self.q / 4), update, worst(self.slope_n * self.r.high)))


@dataclass(frozen=True)
class MixedComparison:
    """``T`` of the module docstring on differences ``u`` of ``h`` and ``e`` of the input.

    ``A = |U_n| e + |W_n| u`` and ``Z = |W_z| u + |U_z| e``; with a reset gate
    ``A = |U_n| e + max over r of ( r |W_n| u + r (1 - r) q (|W_r| u + |U_r| e) )``.
    """

    bounds: Bounds
    hidden: Tensor  # |W|
    inputs: Tensor  # |U|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        """Return the bound on the next difference."""
        (hidden,) = state
        sums, driven = hidden @ self.hidden.mT, torch.zeros_like(hidden)
        if inputs is not None:
            pushed, units = inputs @ self.inputs.mT, hidden.shape[-1]
            driven = pushed[..., -units:]
            sums = sums + torch.cat((pushed[..., :-units], torch.zeros_like(driven)), -1)
        hidden, sums, driven = (value.unsqueeze(-2) for value in (hidden, sums, driven))  # for the scenarios
        return (worst(self.bounds.change(hidden, sums, driven)),)


class MixedRecurrence(GatedRecurrence):
    """Adapter for cells with ``h' = (1 - z) n + z h``; candidate and leak gate are the last two of ``gates``.

    Norms: ``row`` (formula above), ``tight`` (nonlinear Perron iteration), ``l2`` (spectral norms).
    """

    # --------------------------------------------------------------- state map
    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros of shape ``(..., hidden_size)``."""
        return (inputs.new_zeros(*inputs.shape[:-1], self.parameters()["weight_hh"].shape[1]),)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """``max(1, state_bound)``: ``h'`` is a convex combination of ``h`` and a tanh."""
        return torch.full_like(weights["weight_hh"][0], max(1.0, state_bound))

    # ------------------------------------------------------------- certificate
    @abstractmethod
    def bounds(
        self, weights: Weights, drive: Interval, state_bound: float | Tensor, leak_bound: float | None = None
    ) -> Bounds:
        """Return the bounds for states of at most ``state_bound``, with the leak gate at most ``leak_bound``."""

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the rate of the class docstring; infinite when nothing is known about the inputs."""
        norm = self.checked_norm(norm)
        matrix = weights["weight_hh"]
        one = torch.ones_like(matrix[0])
        if drive is None:
            return Contraction(torch.full_like(one[0], torch.inf), (one,))
        bounds = self.bounds(weights, drive, max(1.0, state_bound))
        if norm == "tight":
            result = self._tight(matrix, bounds)
        elif norm == "l2":
            result = self._l2(matrix, bounds)
        else:
            result = Contraction(_unit_rates(matrix, bounds).amax(), (one,))
        return result._replace(rate=result.rate * linalg.inflation(matrix.shape[1]))

    def unit_rates(self, weights: Weights, drive: Interval | None, *, state_bound: float = 1.0) -> Tensor:
        """Return the rates whose maximum is that of ``row``; infinite when nothing is known about the inputs."""
        matrix = weights["weight_hh"]
        if drive is None:
            return torch.full_like(matrix[0], torch.inf)
        bounds = self.bounds(weights, drive, max(1.0, state_bound))
        return _unit_rates(matrix, bounds) * linalg.inflation(matrix.shape[1])

    def contraction_in(
        self, weights: Weights, drive: Interval | None, witness: Contraction, *, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the contraction in the maximum norm with the weights of a ``tight`` witness."""
        if drive is None or witness.order <= 2:
            return None
        matrix, bounds = weights["weight_hh"], self.bounds(weights, drive, max(1.0, state_bound))
        scale = witness.scales[0].to(matrix)
        rate = (bounds.change(scale, matrix.abs() @ scale) / scale).amax()
        return Contraction(rate * linalg.inflation(matrix.shape[1]), (scale,))

    @staticmethod
    def _tight(matrix: Tensor, bounds: Bounds) -> Contraction:
        magnitude = matrix.abs()

        def rates(scale: Tensor) -> Tensor:
            return worst(bounds.change(scale, magnitude @ scale)) / scale

        best = current = torch.ones_like(matrix[0])
        best_rate = rates(current).amax()
        for _ in range(_TIGHT_ITERATIONS):
            values = rates(current)
            rate = values.amax()
            best, best_rate = torch.where(rate < best_rate, current, best), torch.fmin(rate, best_rate)
            current = 0.5 * current * (1 + values / rate) + linalg.PERRON_FLOOR
            current = current / current.amax()
        return Contraction(best_rate, (best,))

    @staticmethod
    def _l2(matrix: Tensor, bounds: Bounds) -> Contraction:
        coefficients = bounds.coefficients()
        scaled = coefficients.flatten()[:, None] * matrix
        chi = torch.stack([linalg.spectral_norm(block) for block in scaled.chunk(len(coefficients))]).sum()
        z, keep = bounds.z.high.amax(), bounds.keep.amin()
        # Units may gate differently, so z + (1 - z) chi alone is not a bound in the Euclidean norm.
        rate = torch.where(chi <= keep / (1 + keep), z + keep * chi, (z / (1 + keep) + chi.square()).sqrt())
        return Contraction(rate, (torch.ones_like(matrix[0]),), order=2)

    def budget(
        self, weights: Weights, drive: Interval, rate: float, *, norm: str, state_bound: float, leak_bound: float
    ) -> Budget:
        """``K + z D n_z <= (rate - z) / (1 - z)``, ``K`` linear in the row norms (for ``l2`` see :meth:`contraction`).

        With a reset gate ``K = s_n r n_n + s_n q n_r / 4``.
        """
        bounds = self.bounds(weights, drive, max(1.0, state_bound), leak_bound)
        coefficients, limit = bounds.coefficients(), (rate - bounds.z.high) / bounds.keep
        if norm == "l2":
            coefficients = coefficients.amax(1, keepdim=True)
            z, keep = bounds.z.high.amax(0, keepdim=True), bounds.keep.amin(0, keepdim=True)
            limit = (rate - z) / keep
            limit = torch.where(limit <= keep / (1 + keep), limit, (rate**2 - z / (1 + keep)).clamp(min=0).sqrt())
        return Budget(coefficients, limit.clamp(min=0))

    # ------------------------------------------------------------- comparison
    def _reachable(self, weights: Weights, drive: Interval, state_bound: float) -> tuple[Bounds, Tensor]:
        """Bounds along runs, and the box of their states: averages of candidates and of the state they start from."""
        bounds = self.bounds(weights, drive, max(1.0, state_bound))
        for _ in range(BOX_ROUNDS):
            bounds = self.bounds(weights, drive, worst(bounds.n.high).clamp(min=state_bound))
        return bounds, worst(bounds.n.high).clamp(min=state_bound)

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """The largest candidate ``|n|``, at least ``state_bound``; None without inputs."""
        return None if drive is None else (self._reachable(weights, drive, state_bound)[1],)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> MixedComparison | None:
        """Return the :class:`MixedComparison`; None when nothing is known about the inputs."""
        if drive is None:
            return None
        bounds, _ = self._reachable(weights, drive, state_bound)
        return MixedComparison(bounds, weights["weight_hh"].abs(), weights["weight_ih"].abs())


def _unit_rates(matrix: Tensor, bounds: Bounds) -> Tensor:
    """``T`` for ``v = 1``, shape ``(units,)``: that of the worst scenario."""
    return worst(bounds.change(torch.ones_like(matrix[0]), matrix.abs().sum(1)))
