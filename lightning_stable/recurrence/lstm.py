"""``nn.LSTM`` (with or without ``proj_size``) and ``nn.LSTMCell``.

State ``(h, c)``; ``c' = f c + i g`` and ``h' = o tanh(c')``. With gate maxima ``i, f, o``, ``g = max |tanh|`` and
slope bounds ``s`` on the admissible box, and ``C = i g / (1 - f)`` the box of ``c``, the rows of the Jacobian obey::

    |dc'_j| <= f_j |dc_j| + b_j |dh|        b_j = C_j s_f n_fj + i_j s_g n_gj + g_j s_i n_ij
    |dh'_j| <= o_j |dc'_j| + e_j |dh|       e_j = tanh(C_j) s_o n_oj

where ``n_qj`` is the l1 norm of row ``j`` of gate ``q``. The state map contracts at ``rate`` in a weighted maximum
norm as soon as, for every unit, ``e_j + o_j b_j rate / (rate - f_j) <= rate``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import BOX_ROUNDS, Budget, Contraction, GatedRecurrence, State, Weights, reach
from lightning_stable.recurrence.intervals import (
    Interval,
    saturating,
    sigmoid_slope,
    tanh_least,
    tanh_magnitude,
    tanh_slope,
)
from lightning_stable.recurrence.tubes import LSTMTube, Metric, Tube

# A unit whose cell does not see h at all would need an infinite weight on c; this floor under b keeps it finite.
_COUPLING_FLOOR = 1e-9
# Rates are raised by this much, so that a unit whose output gate is all but closed does not need one either.
_RATE_SLACK = 1 + 1e-10
_TIGHT_ITERATIONS = 60


class _Bounds(NamedTuple):
    """Per-unit bounds, each of shape ``(units,)``."""

    i: Tensor
    f: Tensor
    g: Tensor
    g_least: Tensor  # min |tanh|
    o: Tensor
    keep: Tensor  # 1 - f, computed without cancellation
    slope_i: Tensor
    slope_f: Tensor
    slope_g: Tensor
    slope_o: Tensor
    cell: Tensor  # C, the box of c
    tanh_cell: Tensor


@dataclass(frozen=True)
class _Comparison:
    """``T`` of the ``tight`` certificate, on differences of ``(h, c)``, or ``(m, c)`` with ``proj_size``.

    With ``a_q = |W_q| u_h + |U_q| e`` per gate, and :func:`saturating` for the largest of a slope and a value of tanh::

        T_c = f u_c + C s_f a_f + max over g of ( (1 - g^2) i a_g + |g| s_i a_i )
        T_h = max over t in [0, tanh(C)] of ( (1 - t^2) o T_c + t s_o a_o )
    """

    bounds: _Bounds
    hidden: Tensor  # |W|, or |W_hh W_hr| with proj_size
    inputs: Tensor  # |U|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        bounds, (hidden, cell) = self.bounds, state
        pre = hidden @ self.hidden.mT
        i, f, g, o = (pre if inputs is None else pre + inputs @ self.inputs.mT).chunk(4, dim=-1)
        cell = bounds.f * cell + bounds.cell * bounds.slope_f * f
        cell = cell + saturating(bounds.i * g, bounds.slope_i * i, bounds.g_least, bounds.g)
        steep = bounds.o * cell
        return saturating(steep, bounds.slope_o * o, torch.zeros_like(steep), bounds.tanh_cell), cell


class LSTMRecurrence(GatedRecurrence):
    """Adapter for LSTM recurrences.

    Norms: ``row`` (formula above, solved for the rate per unit), ``tight`` (nonlinear Perron iteration that uses
    ``tanh' = 1 - tanh^2``), ``l2`` (spectral norms), ``miller-hardt`` (the paper's conditions, Proposition 2).
    With ``proj_size`` the certificate's state is ``(m, c)`` with ``h = W_hr m``, and projections scale whole rows.
    """

    cell = "lstm"
    roles = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    gates = ("i", "f", "g", "o")
    leak = "f"
    # The forget gate's coefficient is by far the largest; twice the share of the others leaves it as large a norm as
    # the cell input's (JSB chorales: 0.21 and 0.20; with equal shares 0.13 and 0.25).
    shares = (0.2, 0.4, 0.2, 0.2)
    norms = ("row", "tight", "l2", "miller-hardt")
    methods = ("shares", "euclidean", "rescale", "miller-hardt")

    # --------------------------------------------------------------- state map
    def step(self, inputs: Tensor, state: State) -> State:
        """``c' = f c + i g``, ``h' = o tanh(c')``; torch's gate order is i, f, g, o."""
        p = self.parameters()
        pre = torch.nn.functional.linear(inputs, p["weight_ih"], p.get("bias_ih"))
        pre = pre + torch.nn.functional.linear(state[0], p["weight_hh"], p.get("bias_hh"))
        i, f, g, o = pre.chunk(4, dim=-1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        if "weight_hr" in p:
            hidden = torch.nn.functional.linear(hidden, p["weight_hr"])
        return hidden, cell

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros of shapes ``(..., output_size)`` and ``(..., hidden_size)``."""
        rows, columns = self.parameters()["weight_hh"].shape
        return inputs.new_zeros(*inputs.shape[:-1], columns), inputs.new_zeros(*inputs.shape[:-1], rows // 4)

    def recurrent_matrix(self, weights: Weights) -> Tensor:
        """``W_hh``, or the exact product ``W_hh W_hr`` with ``proj_size``."""
        hidden = weights["weight_hh"]
        return hidden @ weights["weight_hr"] if "weight_hr" in weights else hidden

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """``|h| = |o tanh(c)| <= 1`` whatever the input; times ``|W_hr|`` with ``proj_size``."""
        if "weight_hr" in weights:
            return weights["weight_hr"].abs().sum(1)
        return torch.ones_like(weights["weight_hh"][0])

    # ------------------------------------------------------------- certificate
    def _bounds(
        self,
        weights: Weights,
        drive: Interval,
        state_bound: float,
        leak_bound: float | None = None,
        hidden: Tensor | None = None,
    ) -> _Bounds:
        """Bounds for runs from states of at most ``state_bound``; ``hidden`` bounds ``|h|`` at all steps, if known."""
        i, f, g, o = self.pre_activation(weights, drive, state_bound if hidden is None else hidden)
        forget, keep = torch.sigmoid(f.high), torch.sigmoid(-f.high)
        slope_f = sigmoid_slope(f)
        if leak_bound is not None:
            slope_f = torch.where(forget > leak_bound, 0.25, slope_f)
            forget, keep = forget.clamp(max=leak_bound), keep.clamp(min=1 - leak_bound)
        input_gate, candidate = torch.sigmoid(i.high), tanh_magnitude(g)
        # |f c + i g| <= max(|c|, C): whatever a run starts from, it never leaves the larger of the two.
        cell = (input_gate * candidate / keep.clamp(min=torch.finfo(keep.dtype).tiny)).clamp(min=state_bound)
        if "weight_hr" in weights and state_bound > 0:
            cell = cell.maximum(self._first_cell(weights, drive, state_bound))
        return _Bounds(
            i=input_gate,
            f=forget,
            g=candidate,
            g_least=tanh_least(g),
            o=torch.sigmoid(o.high),
            keep=keep,
            slope_i=sigmoid_slope(i),
            slope_f=slope_f,
            slope_g=tanh_slope(g),
            slope_o=sigmoid_slope(o),
            cell=cell,
            tanh_cell=torch.tanh(cell),
        )

    @staticmethod
    def _first_pre_activation(weights: Weights, drive: Interval, state_bound: float) -> tuple[Interval, ...]:
        """With ``proj_size``, the gates of the first step, whose ``h_0`` need be no ``W_hr m``."""
        bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else torch.zeros_like(drive.low)
        return drive.shift(bias).widen(reach(weights["weight_hh"], state_bound)).chunk(4)

    def _first_cell(self, weights: Weights, drive: Interval, state_bound: float) -> Tensor:
        """``f |c_0| + i |g|``, a bound on ``c`` after the first step with ``proj_size``."""
        i, f, g, _ = self._first_pre_activation(weights, drive, state_bound)
        return torch.sigmoid(f.high) * state_bound + torch.sigmoid(i.high) * tanh_magnitude(g)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the rate of the class docstring; infinite when nothing is known about the inputs."""
        norm = self.checked_norm(norm)
        matrix = self.recurrent_matrix(weights)
        one = torch.ones_like(matrix[0])
        if drive is None:
            return Contraction(torch.full_like(one[0], torch.inf), (one, one))
        bounds = self._bounds(weights, drive, state_bound)
        norms = self.row_norms(weights)
        if norm == "tight":
            comparison = _Comparison(bounds, matrix.abs(), weights["weight_ih"].abs())
            result = self._tight(comparison, self._row(norms, bounds))
        elif norm == "l2":
            result = self._l2(matrix, bounds)
        elif norm == "miller-hardt":
            result = self._miller_hardt(norms, bounds)
        else:
            result = self._row(norms, bounds)
        return result._replace(rate=result.rate * linalg.inflation(matrix.shape[1]))

    def unit_rates(self, weights: Weights, drive: Interval | None, *, state_bound: float = 1.0) -> Tensor:
        """Return the rates whose maximum is that of ``row``; infinite when nothing is known about the inputs."""
        matrix = self.recurrent_matrix(weights)
        if drive is None:
            return torch.full_like(matrix[0], torch.inf)
        bounds = self._bounds(weights, drive, state_bound)
        b, e = self._coupling(self.row_norms(weights), bounds)
        return _joint_rate(bounds.f, b, bounds.o, e) * linalg.inflation(matrix.shape[1])

    @staticmethod
    def _coupling(norms: Tensor, bounds: _Bounds) -> tuple[Tensor, Tensor]:
        """Return ``b`` and ``e`` of the module docstring from row norms of shape ``(4, units)``."""
        n_i, n_f, n_g, n_o = norms
        b = bounds.cell * bounds.slope_f * n_f + bounds.i * bounds.slope_g * n_g + bounds.g * bounds.slope_i * n_i
        return b.clamp(min=_COUPLING_FLOOR), bounds.tanh_cell * bounds.slope_o * n_o

    def _row(self, norms: Tensor, bounds: _Bounds) -> Contraction:
        b, e = self._coupling(norms, bounds)
        rate = _joint_rate(bounds.f, b, bounds.o, e).amax()
        return Contraction(rate, (torch.ones_like(b), _cell_scale(rate, bounds, b, e)))

    @staticmethod
    def _tight(comparison: _Comparison, start: Contraction) -> Contraction:
        current = torch.cat(start.scales)
        best, best_rate = current, start.rate
        for _ in range(_TIGHT_ITERATIONS):
            image = torch.cat(comparison(current.chunk(2), None))
            rate = (image / current).amax()
            best, best_rate = torch.where(rate < best_rate, current, best), torch.fmin(rate, best_rate)
            current = 0.5 * (current + image / rate) + linalg.PERRON_FLOOR * current.amax()
        return Contraction(best_rate, tuple(best.chunk(2)))

    @staticmethod
    def _l2(matrix: Tensor, bounds: _Bounds) -> Contraction:
        w_i, w_f, w_g, w_o = matrix.chunk(4)

        def gain(scale: Tensor, block: Tensor) -> Tensor:
            return linalg.spectral_norm(scale[:, None] * block)

        b = gain(bounds.cell * bounds.slope_f, w_f) + gain(bounds.i * bounds.slope_g, w_g)
        b = (b + gain(bounds.g * bounds.slope_i, w_i)).clamp(min=_COUPLING_FLOOR)
        e = gain(bounds.tanh_cell * bounds.slope_o, w_o)
        f, o = bounds.f.amax(), bounds.o.amax()
        rate = _joint_rate(f, b, o, e)
        one = torch.ones_like(bounds.f)
        worst = bounds._replace(f=f, o=o, cell=bounds.cell.amax())
        return Contraction(rate, (one, one * _cell_scale(rate, worst, b, e)), order=2)

    def _miller_hardt(self, norms: Tensor, bounds: _Bounds) -> Contraction:
        """``(1 + sqrt(1 - f (1 - f))) / 2`` if the conditions of Proposition 2 hold, else infinity."""
        f, keep = bounds.f.amax(), bounds.keep.amin()
        b, e = self._coupling(norms, bounds)
        holds = (norms < miller_hardt_radii(keep)[:, None]).all() & (f < 1) & (bounds.cell <= 1 / keep).all()
        rate = torch.where(holds, (1 + (1 - f * keep).sqrt()) / 2, torch.inf)
        return Contraction(rate, (torch.ones_like(b), _cell_scale(rate.clamp(max=1), bounds, b, e)))

    def budget(
        self, weights: Weights, drive: Interval, rate: float, *, norm: str, state_bound: float, leak_bound: float
    ) -> Budget:
        """``sum_q a_q n_q <= rate`` with ``a_o = tanh(C) s_o`` and the others multiplied by ``o rate/(rate - f)``."""
        bounds = self._bounds(weights, drive, state_bound, leak_bound)
        if norm == "l2":
            bounds = _Bounds(*(bound.amax(0, keepdim=True) for bound in bounds))
        loop = bounds.o * rate / (rate - bounds.f)
        coefficients = torch.stack(
            (
                loop * bounds.g * bounds.slope_i,
                loop * bounds.cell * bounds.slope_f,
                loop * bounds.i * bounds.slope_g,
                bounds.tanh_cell * bounds.slope_o,
            )
        )
        return Budget(coefficients, (rate - _COUPLING_FLOOR * loop).clamp(min=0))

    def leading_budget(
        self, weights: Weights, norms: Tensor, leak: Tensor, rate: float, *, state_bound: float, leak_bound: float
    ) -> Budget | None:
        """Return :meth:`budget` with ``i = o = g = 1`` and the steepest slopes; None with ``proj_size``."""
        if "weight_hr" in self.parameter_names():
            return None
        forget, keep = torch.sigmoid(leak), torch.sigmoid(-leak)
        least = forget.clamp(max=0.5)  # the steepest point is at 1/2
        slope = least * (1 - least)
        if leak_bound < 0.5:
            slope = torch.where(forget > leak_bound, 0.25, slope)
        cell = keep.clamp(min=1 - leak_bound).reciprocal()
        if state_bound > 1:
            cell = cell.clamp(min=state_bound)
        loop = rate / (rate - forget.clamp(max=leak_bound))
        coefficients = torch.stack((loop / 4, loop * cell * slope, loop, torch.tanh(cell) / 4))
        return Budget(coefficients, (rate - _COUPLING_FLOOR * loop).clamp(min=0))

    # ------------------------------------------------------------- comparison
    def _reachable(self, weights: Weights, drive: Interval, state_bound: float) -> tuple[_Bounds, State]:
        """``|h| <= o tanh(C)``, ``|c| <= C`` along runs, with the bounds; ``m`` for ``h`` with ``proj_size``."""
        bounds = self._bounds(weights, drive, state_bound)
        for _ in range(BOX_ROUNDS):
            bounds = self._bounds(
                weights, drive, state_bound, hidden=self._hidden_box(weights, drive, state_bound, bounds)
            )
        return bounds, (self._hidden_box(weights, drive, state_bound, bounds), bounds.cell)

    def _hidden_box(self, weights: Weights, drive: Interval, state_bound: float, bounds: _Bounds) -> Tensor:
        """``max(h_0, o tanh(C))``; with ``proj_size``, that of ``m``, with the gate of the first step as well."""
        if "weight_hr" not in weights:
            return (bounds.o * bounds.tanh_cell).clamp(min=state_bound)
        first = torch.sigmoid(self._first_pre_activation(weights, drive, state_bound)[3].high)
        return torch.maximum(bounds.o, first) * bounds.tanh_cell if state_bound > 0 else bounds.o * bounds.tanh_cell

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """``(o tanh(C), C)`` for ``(h, c)``, or after a step for ``(m, c)`` with ``proj_size``; None without inputs."""
        return None if drive is None else self._reachable(weights, drive, state_bound)[1]

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> _Comparison | None:
        """Return the :class:`_Comparison`; None when nothing is known about the inputs."""
        if drive is None:
            return None
        bounds, _ = self._reachable(weights, drive, state_bound)
        return _Comparison(bounds, self.recurrent_matrix(weights).abs(), weights["weight_ih"].abs())

    def readout(self, weights: Weights) -> Tensor | None:
        """``W_hr`` with ``proj_size``: the certificate's state is ``m``, the output ``W_hr m``."""
        return weights.get("weight_hr")

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.LSTMTube`."""
        return LSTMTube(weights, metric)


def miller_hardt_radii(keep: Tensor) -> Tensor:
    """``(k, k^2, k / 4, k)``, ``k = 1 - f``: the largest row norms of i, f, g, o in Miller & Hardt's Proposition 2."""
    return torch.stack((keep, keep.square(), keep / 4, keep))


def miller_hardt_forget_bound(rate: float) -> float:
    """Return the largest ``f`` in [1/2, 1] with ``(1 + sqrt(1 - f (1 - f))) / 2 = rate``, Miller & Hardt's rate.

    Rates below 0.933 are out of its reach; the bound that comes nearest, 1/2, is returned then.
    """
    product = 1 - (2 * rate - 1) ** 2
    return 0.5 * (1 + math.sqrt(max(0.0, 1 - 4 * product)))


def _joint_rate(f: Tensor, b: Tensor, o: Tensor, e: Tensor) -> Tensor:
    """``rho([[f, b], [o f, o b + e]])``, the spectral radius, and a little more, elementwise."""
    loop = o * b
    # The discriminant (f + e + o b)^2 - 4 f e, written without cancellation.
    return _RATE_SLACK * (f + e + loop + ((f - e).square() + loop * (2 * (f + e) + loop)).sqrt()) / 2


def _cell_scale(rate: Tensor, bounds: _Bounds, b: Tensor, e: Tensor) -> Tensor:
    """``f w + b <= rate w`` and ``o (f w + b) + e <= rate``: return such a weight ``w`` on ``|dc|``.

    It is the largest one, or the box of ``c`` if that is smaller: a larger weight would only let differences of ``c``
    disappear in rounding.
    """
    tiny = torch.finfo(rate.dtype).tiny
    largest = ((rate - e) / bounds.o.clamp(min=tiny) - b) / bounds.f.clamp(min=tiny)
    return largest.minimum(bounds.cell).maximum(b / (rate - bounds.f).clamp(min=1e-30)).clamp(min=1e-12)
