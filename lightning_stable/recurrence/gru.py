"""``nn.GRU`` and ``nn.GRUCell``: ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``, ``h' = (1 - z) n + z h``.

With ``q_j = |W_hn h + b_hn|_j`` at its largest, the rows of the Jacobian obey
``|dh'_j| <= z |dh_j| + (1 - z) (K_j + z D_j Z_j) |dh|``, where::

    K_j = s_n max over r in [r_low, r_high] of ( r n_nj + r (1 - r) q_j n_rj )
    D_j = state bound + max |n_j|,   Z_j = n_zj

so the state map contracts at ``rate`` in the maximum norm when ``K_j + z_j D_j Z_j <= (rate - z_j) / (1 - z_j)`` at
the largest ``z_j``. The reset gate multiplies *after* ``b_hn`` is added, as PyTorch does it; published conditions
for the other variant do not hold here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import (
    BOX_ROUNDS,
    Budget,
    Contraction,
    GatedRecurrence,
    State,
    Weights,
    reach,
)
from lightning_stable.recurrence.intervals import Interval, saturating, tanh_least, tanh_magnitude, tanh_slope

_TIGHT_ITERATIONS = 60


class _Bounds(NamedTuple):
    """Per-unit bounds, each of shape ``(units,)``."""

    z: Tensor
    z_low: Tensor
    keep: Tensor  # 1 - z, computed without cancellation
    r: Interval
    n: Tensor
    n_least: Tensor  # min |tanh|
    slope_n: Tensor
    q: Tensor
    state: float | Tensor


@dataclass(frozen=True)
class _Comparison:
    """``T`` on differences of ``h``.

    With ``A = |W_n| u``, ``R = |W_r| u + |U_r| e`` and ``Z = |W_z| u + |U_z| e``::

        K = s_n ( |U_n| e + max over r of ( r A + r (1 - r) q R ) )
        T = max over z in [z_low, z_high] of ( z u + (1 - z) (K + z D Z) )

    Both are concave parabolas, largest at the vertex or at an end of the interval.
    """

    bounds: _Bounds
    hidden: Tensor  # |W|
    inputs: Tensor  # |U|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        bounds, (hidden,) = self.bounds, state
        reset, update, candidate = (hidden @ self.hidden.mT).chunk(3, dim=-1)
        driven = torch.zeros_like(candidate)
        if inputs is not None:
            reset_in, update_in, driven = (inputs @ self.inputs.mT).chunk(3, dim=-1)
            reset, update = reset + reset_in, update + update_in
        coupling = bounds.slope_n * (driven + _candidate_gain(bounds, candidate, reset))
        curved = (bounds.state + bounds.n) * update
        vertex = (hidden - coupling + curved) / (2 * curved).clamp(min=torch.finfo(curved.dtype).tiny)
        z = vertex.maximum(bounds.z_low).minimum(bounds.z)
        return (z * hidden + (1 - z) * (coupling + z * curved),)


class GRURecurrence(GatedRecurrence):
    """Adapter for GRU recurrences.

    Norms: ``row`` (formula above), ``tight`` (nonlinear Perron iteration), ``l2`` (spectral norms).
    """

    cell = "gru"
    gates = ("r", "z", "n")
    leak = "z"
    shares = (1 / 3, 1 / 3, 1 / 3)

    # --------------------------------------------------------------- state map
    def step(self, inputs: Tensor, state: State) -> State:
        """``(h,)`` to the next ``(h,)``; torch's gate order r, z, n."""
        p = self.parameters()
        r_in, z_in, n_in = torch.nn.functional.linear(inputs, p["weight_ih"], p.get("bias_ih")).chunk(3, dim=-1)
        r_h, z_h, n_h = torch.nn.functional.linear(state[0], p["weight_hh"], p.get("bias_hh")).chunk(3, dim=-1)
        reset, update = torch.sigmoid(r_in + r_h), torch.sigmoid(z_in + z_h)
        candidate = torch.tanh(n_in + reset * n_h)
        return ((1 - update) * candidate + update * state[0],)

    def initial_state(self, inputs: Tensor) -> State:
        """Zeros of shape ``(..., hidden_size)``."""
        return (inputs.new_zeros(*inputs.shape[:-1], self.parameters()["weight_hh"].shape[1]),)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """``h'`` is a convex combination of ``h`` and a tanh, so the box of the states is kept."""
        return torch.full_like(weights["weight_hh"][0], max(1.0, state_bound))

    # ------------------------------------------------------------- certificate
    def _bounds(
        self, weights: Weights, drive: Interval, state_bound: float | Tensor, leak_bound: float | None = None
    ) -> _Bounds:
        if not isinstance(state_bound, Tensor):
            state_bound = max(1.0, state_bound)
        r, z, _ = self.pre_activation(weights, drive, state_bound)
        update, keep = torch.sigmoid(z.high), torch.sigmoid(-z.high)
        if leak_bound is not None:
            update, keep = update.clamp(max=leak_bound), keep.clamp(min=1 - leak_bound)
        units = update.shape[0]
        zeros = torch.zeros_like(update)
        bias_in = weights["bias_ih"][2 * units :] if "bias_ih" in weights else zeros
        bias_hidden = weights["bias_hh"][2 * units :] if "bias_hh" in weights else zeros
        radius = reach(weights["weight_hh"][2 * units :], state_bound)
        reset = Interval(torch.sigmoid(r.low), torch.sigmoid(r.high))
        hidden_part = Interval(bias_hidden - radius, bias_hidden + radius)
        gated = reset.times(hidden_part)
        pre_n = Interval(drive.low[2 * units :] + bias_in + gated.low, drive.high[2 * units :] + bias_in + gated.high)
        return _Bounds(
            z=update,
            z_low=torch.sigmoid(z.low).minimum(update),
            keep=keep,
            r=reset,
            n=tanh_magnitude(pre_n),
            n_least=tanh_least(pre_n),
            slope_n=tanh_slope(pre_n),
            q=hidden_part.magnitude,
            state=state_bound,
        )

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """See the class; infinite when nothing is known about the inputs."""
        norm = norm or self.norms[0]
        if norm not in self.norms:
            raise ValueError(f"`norm` of a {self.cell} recurrence must be one of {self.norms}. Got {norm!r}.")
        matrix = weights["weight_hh"]
        one = torch.ones_like(matrix[0])
        if drive is None:
            return Contraction(torch.full_like(one[0], torch.inf), (one,))
        bounds = self._bounds(weights, drive, state_bound)
        if norm == "tight":
            result = self._tight(matrix, bounds)
        elif norm == "l2":
            result = self._l2(matrix, bounds)
        else:
            n_r, n_z, n_n = self.row_norms(weights)
            coupling = bounds.slope_n * _candidate_gain(bounds, n_n, n_r)
            coupling = coupling + bounds.z * (bounds.state + bounds.n) * n_z
            result = Contraction(_mixed_rate(bounds, coupling).amax(), (one,))
        return result._replace(rate=result.rate * linalg.inflation(matrix.shape[1]))

    @staticmethod
    def _tight(matrix: Tensor, bounds: _Bounds) -> Contraction:
        w_r, w_z, w_n = matrix.abs().chunk(3)

        def rates(scale: Tensor) -> Tensor:
            reset, update, candidate = w_r @ scale / scale, w_z @ scale / scale, w_n @ scale / scale
            steep, large = _candidate_gain(bounds, candidate, reset), bounds.z * update
            coupling = saturating(steep, large, bounds.n_least, bounds.n) + large * bounds.state
            return _mixed_rate(bounds, coupling)

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
    def _l2(matrix: Tensor, bounds: _Bounds) -> Contraction:
        w_r, w_z, w_n = matrix.chunk(3)

        def gain(scale: Tensor, block: Tensor) -> Tensor:
            return linalg.spectral_norm(scale[:, None] * block)

        chi = gain(bounds.slope_n * bounds.r.high, w_n) + gain(bounds.slope_n * bounds.q / 4, w_r)
        chi = chi + gain(bounds.z * (bounds.state + bounds.n), w_z)
        z, keep = bounds.z.amax(), bounds.keep.amin()
        # Units may gate differently, so z + (1 - z) chi alone is not a bound in the Euclidean norm.
        rate = torch.where(chi <= keep / (1 + keep), z + keep * chi, (z / (1 + keep) + chi.square()).sqrt())
        return Contraction(rate, (torch.ones_like(bounds.z),), order=2)

    def budget(
        self, weights: Weights, drive: Interval, rate: float, *, norm: str, state_bound: float, leak_bound: float
    ) -> Budget:
        """``s_n r n_n + s_n q n_r / 4 + z D n_z <= (rate - z) / (1 - z)`` (for ``l2`` see :meth:`contraction`)."""
        bounds = self._bounds(weights, drive, state_bound, leak_bound)
        coefficients = torch.stack(
            (
                bounds.slope_n * bounds.q / 4,
                bounds.z * (bounds.state + bounds.n),
                bounds.slope_n * bounds.r.high,
            )
        )
        limit = (rate - bounds.z) / bounds.keep
        if norm == "l2":
            coefficients = coefficients.amax(1, keepdim=True)
            z, keep = bounds.z.amax(0, keepdim=True), bounds.keep.amin(0, keepdim=True)
            limit = (rate - z) / keep
            limit = torch.where(limit <= keep / (1 + keep), limit, (rate**2 - z / (1 + keep)).clamp(min=0).sqrt())
        return Budget(coefficients, limit.clamp(min=0))

    # ------------------------------------------------------------- comparison
    def _reachable(self, weights: Weights, drive: Interval, state_bound: float) -> tuple[_Bounds, Tensor]:
        """Bounds along runs, and the box of their states: from zero ``h`` is an average of candidates."""
        bounds = self._bounds(weights, drive, state_bound)
        if state_bound > 1:
            return bounds, torch.full_like(bounds.n, state_bound)
        for _ in range(BOX_ROUNDS):
            bounds = self._bounds(weights, drive, bounds.n)
        return bounds, bounds.n

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """The largest candidate ``|n|``, or ``state_bound`` if that is above 1; None without inputs."""
        return None if drive is None else (self._reachable(weights, drive, state_bound)[1],)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> _Comparison | None:
        """See :class:`_Comparison`; None when nothing is known about the inputs."""
        if drive is None:
            return None
        bounds, _ = self._reachable(weights, drive, state_bound)
        return _Comparison(bounds, weights["weight_hh"].abs(), weights["weight_ih"].abs())


def _candidate_gain(bounds: _Bounds, candidate: Tensor, reset: Tensor) -> Tensor:
    """``max over r of (r A + r (1 - r) q R)``: a concave parabola, at its vertex or at an end of the interval."""
    linear, curved = candidate, bounds.q * reset
    vertex = (linear + curved) / (2 * curved).clamp(min=torch.finfo(curved.dtype).tiny)
    r = vertex.maximum(bounds.r.low).minimum(bounds.r.high)
    return r * linear + r * (1 - r) * curved


def _mixed_rate(bounds: _Bounds, coupling: Tensor) -> Tensor:
    """``max of z + (1 - z) coupling`` over the interval of ``z``: at its high end if coupling < 1, else at its low."""
    return torch.where(coupling <= 1, bounds.z + bounds.keep * coupling, bounds.z_low + (1 - bounds.z_low) * coupling)
