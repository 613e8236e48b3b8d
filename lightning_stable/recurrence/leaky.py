"""Cells whose state is a gated mean of itself and a candidate, ``h' = (1 - z) n + z h``: what they share.

With the bounds of :class:`Bounds` the rows of the Jacobian obey
``|dh'_j| <= z |dh_j| + (1 - z) (K_j + z D_j Z_j) |dh|``, where ``D_j = state bound + max |n_j|``, ``Z_j = n_zj`` and
``K_j |dh|`` bounds the change of the candidate. So the state map contracts at ``rate`` in the maximum norm when
``K_j + z_j D_j Z_j <= (rate - z_j) / (1 - z_j)`` at the largest ``z_j``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import BOX_ROUNDS, Budget, Contraction, GatedRecurrence, State, Weights
from lightning_stable.recurrence.intervals import Interval, saturating, tanh_least, tanh_magnitude, tanh_slope, worst

_TIGHT_ITERATIONS = 60


class Bounds(NamedTuple):
    """Per-unit bounds of shape ``(units,)`` or ``(scenarios, units)``; the last two of cells with a reset gate."""

    z: Tensor
    z_low: Tensor
    keep: Tensor  # 1 - z, computed without cancellation
    n: Tensor
    n_least: Tensor  # min |tanh|
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
            z=z,
            z_low=torch.sigmoid(leak.low).minimum(z),
            keep=keep,
            n=tanh_magnitude(candidate),
            n_least=tanh_least(candidate),
            slope_n=tanh_slope(candidate),
            state=state_bound,
            r=r,
            q=q,
        )

    def split(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of ``tanh'`` and ``z (1 - z)`` from sums over the rows, gates in the last dimension.

        With a reset gate the first is ``max over r of (r A + r (1 - r) q R)``, a concave parabola, at its vertex or at
        an end of the interval.
        """
        if self.r is None or self.q is None:
            update, candidate = sums.chunk(2, -1)
            return candidate, update
        reset, update, candidate = sums.chunk(3, -1)
        curved = self.q * reset
        vertex = (candidate + curved) / (2 * curved).clamp(min=torch.finfo(curved.dtype).tiny)
        r = vertex.maximum(self.r.low).minimum(self.r.high)
        return r * candidate + r * (1 - r) * curved, update

    def coefficients(self) -> Tensor:
        """Return the factors of the gates' row norms in a linear bound on the coupling, shape ``(gates, units)``."""
        factors = [self.z * (self.state + self.n), self.slope_n]
        if self.r is not None and self.q is not None:
            factors = [self.slope_n * self.q / 4, factors[0], self.slope_n * self.r.high]
        return torch.stack([worst(factor) for factor in factors])

    def rates(self, coupling: Tensor) -> Tensor:
        """``max of z + (1 - z) coupling`` over the interval of ``z``: at its high end if coupling < 1, else its low."""
        return torch.where(coupling <= 1, self.z + self.keep * coupling, self.z_low + (1 - self.z_low) * coupling)


@dataclass(frozen=True)
class MixedComparison:
    """``T`` on differences of ``h``.

    With ``A = |W_n| u``, ``R = |W_r| u + |U_r| e`` and ``Z = |W_z| u + |U_z| e``::

        K = s_n ( |U_n| e + max over r of ( r A + r (1 - r) q R ) )
        T = max over z in [z_low, z_high] of ( z u + (1 - z) (K + z D Z) )

    Both are concave parabolas, largest at the vertex or at an end of the interval; without a reset gate ``r = 1``.
    """

    bounds: Bounds
    hidden: Tensor  # |W|
    inputs: Tensor  # |U|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        """Return the bound on the next difference."""
        bounds, (hidden,) = self.bounds, state
        sums, driven = hidden @ self.hidden.mT, torch.zeros_like(hidden)
        if inputs is not None:
            pushed, units = inputs @ self.inputs.mT, hidden.shape[-1]
            driven = pushed[..., -units:]
            sums = sums + torch.cat((pushed[..., :-units], torch.zeros_like(driven)), -1)
        sums, driven, hidden = (value.unsqueeze(-2) for value in (sums, driven, hidden))  # for the scenarios
        candidate, update = bounds.split(sums)
        coupling = bounds.slope_n * (driven + candidate)
        curved = (bounds.state + bounds.n) * update
        vertex = (hidden - coupling + curved) / (2 * curved).clamp(min=torch.finfo(curved.dtype).tiny)
        z = vertex.maximum(bounds.z_low).minimum(bounds.z)
        return (worst(z * hidden + (1 - z) * (coupling + z * curved)),)


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
            result = Contraction(self._row_rates(matrix, bounds).amax(), (one,))
        return result._replace(rate=result.rate * linalg.inflation(matrix.shape[1]))

    def unit_rates(self, weights: Weights, drive: Interval | None, *, state_bound: float = 1.0) -> Tensor:
        """Return the rates whose maximum is that of ``row``; infinite when nothing is known about the inputs."""
        matrix = weights["weight_hh"]
        if drive is None:
            return torch.full_like(matrix[0], torch.inf)
        bounds = self.bounds(weights, drive, max(1.0, state_bound))
        return self._row_rates(matrix, bounds) * linalg.inflation(matrix.shape[1])

    @staticmethod
    def _row_rates(matrix: Tensor, bounds: Bounds) -> Tensor:
        candidate, update = bounds.split(matrix.abs().sum(1))
        return worst(bounds.rates(bounds.slope_n * candidate + bounds.z * (bounds.state + bounds.n) * update))

    @staticmethod
    def _tight(matrix: Tensor, bounds: Bounds) -> Contraction:
        magnitude, gates = matrix.abs(), matrix.shape[0] // matrix.shape[1]

        def rates(scale: Tensor) -> Tensor:
            steep, update = bounds.split(magnitude @ scale / scale.repeat(gates))
            large = bounds.z * update
            return worst(bounds.rates(saturating(steep, large, bounds.n_least, bounds.n) + large * bounds.state))

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
        z, keep = bounds.z.amax(), bounds.keep.amin()
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
        coefficients, limit = bounds.coefficients(), (rate - bounds.z) / bounds.keep
        if norm == "l2":
            coefficients = coefficients.amax(1, keepdim=True)
            z, keep = bounds.z.amax(0, keepdim=True), bounds.keep.amin(0, keepdim=True)
            limit = (rate - z) / keep
            limit = torch.where(limit <= keep / (1 + keep), limit, (rate**2 - z / (1 + keep)).clamp(min=0).sqrt())
        return Budget(coefficients, limit.clamp(min=0))

    # ------------------------------------------------------------- comparison
    def _reachable(self, weights: Weights, drive: Interval, state_bound: float) -> tuple[Bounds, Tensor]:
        """Bounds along runs, and the box of their states: averages of candidates and of the state they start from."""
        bounds = self.bounds(weights, drive, max(1.0, state_bound))
        for _ in range(BOX_ROUNDS):
            bounds = self.bounds(weights, drive, worst(bounds.n).clamp(min=state_bound))
        return bounds, worst(bounds.n).clamp(min=state_bound)

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """The largest candidate ``|n|``, at least ``state_bound``; None without inputs."""
        return None if drive is None else (self._reachable(weights, drive, state_bound)[1],)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> MixedComparison | None:
        """Return the :class:`MixedComparison`; None when nothing is known about the inputs."""
        if drive is None:
            return None
        bounds, _ = self._reachable(weights, drive, state_bound)
        return MixedComparison(bounds, weights["weight_hh"].abs(), weights["weight_ih"].abs())
