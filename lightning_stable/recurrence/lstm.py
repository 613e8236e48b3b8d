"""``nn.LSTM`` (with or without ``proj_size``) and ``nn.LSTMCell``.

State ``(h, c)``; ``c' = f c + i g`` and ``h' = o tanh(c')``. A gate enters with its value and with its slope, and both
are taken at the same point: the slope of a sigmoid ``s`` is ``s (1 - s)``, that of ``u = |tanh|`` is ``1 - u^2``. With
``C = i g / (1 - f)`` the box of ``c``, ``w_j |dh|`` for ``|dc_j|`` and ``n_qj`` the l1 norm of row ``j`` of gate ``q``,
the rows of the Jacobian obey::

    |dc'_j| <= X_j |dh|    X_j = max over f of ( f w_j + f (1 - f) C_j n_fj )
                                 + max over i, g of ( i (1 - g^2) n_gj + i (1 - i) g n_ij )
    |dh'_j| <= Y_j |dh|    Y_j = max over o, t of ( o (1 - t^2) X_j + o (1 - o) t n_oj )    t in [0, tanh(C_j)]

Every weight ``w_j`` on ``c_j`` is a witness of the rate ``max(X_j / w_j, Y_j)``; ``X_j / w_j`` falls with ``w_j`` and
``Y_j`` rises, so the best one is where they meet.

For a rate ``lam <= 1`` the largest ``f`` is the worst: ``X_j <= lam w_j`` at ``f`` implies ``C n_f <= w / f``, and with
it the slope of the parabola there is at least ``w (1 - f) / f > 0``. So ``X_j <= lam w_j`` is::

    f (1 - f) C_j n_fj + max over i, g of ( ... ) <= (lam - f) w_j
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
    product_maximum,
    product_peak,
    sigmoid_maximum,
    sigmoid_peak,
    sigmoid_slope,
    tanh_least,
    tanh_magnitude,
    tanh_slope,
    worst,
)
from lightning_stable.recurrence.tubes import LSTMTube, Metric, Tube

# A unit whose cell does not see h at all would need an infinite weight on c; this floor under b keeps it finite.
_COUPLING_FLOOR = 1e-9
# Below this, which float32 can hold, 1 - f counts as 0 and nothing contracts.
_LEAST_KEPT = 1e-30
# Rates are raised by this much, so that a unit whose output gate is all but closed does not need one either.
_RATE_SLACK = 1 + 1e-10
# Smaller weights on c would let differences of h disappear in rounding.
_LEAST_WEIGHT = 1e-12
_TIGHT_ITERATIONS = 60
# Policy iteration converges quadratically: 1e-7 is left after two rounds, nothing after three.
_WITNESS_ROUNDS = 3
# Where it has scenarios to choose from as well.
_SCENARIO_ROUNDS = 8
# Conditions of a budget: the forget gate together with the larger of input gate and candidate; the output gate alone.
_TERMS = ((1,), (0, 2))


class _Bounds(NamedTuple):
    """Per-unit bounds, each of shape ``(..., units)``; leading dimensions stand for different sets of inputs."""

    i: Interval
    f: Interval
    g: Interval  # |tanh|
    o: Interval
    keep: Tensor  # 1 - f, computed without cancellation
    slope_i: Tensor
    slope_f: Tensor
    slope_g: Tensor
    slope_o: Tensor
    cell: Tensor  # C, the box of c
    tanh_cell: Tensor  # max |tanh(c')|, where |c'| <= f C + i g

    @property
    def t(self) -> Interval:
        """``|tanh(c')|``."""
        return Interval(torch.zeros_like(self.tanh_cell), self.tanh_cell)

    def driven(self, i: Tensor, g: Tensor) -> Tensor:
        """``max over i, g of i (1 - g^2) a_g + i (1 - i) |g| a_i``: the change of ``i g``."""
        return product_maximum(g, i, self.i, self.g)

    def cell_change(self, cell: Tensor, f: Tensor, driven: Tensor) -> Tensor:
        """``max over f of f u_c + f (1 - f) C a_f``, and the change of ``i g``: that of ``c``."""
        return sigmoid_maximum(cell, self.cell * f, self.f, self.keep) + driven

    def hidden_change(self, cell: Tensor, o: Tensor) -> Tensor:
        """``max over o, t of o (1 - t^2) X + o (1 - o) t a_o``: the change of ``h`` by that of ``c``."""
        return product_maximum(cell, o, self.o, self.t)


@dataclass(frozen=True)
class _Comparison:
    """``T`` on differences of ``(h, c)``, or ``(m, c)`` with ``proj_size``.

    The formulas of the module docstring with ``a_q = |W_q| u_h + |U_q| e`` for the row norm of gate ``q``, ``u_c`` for
    ``w`` and the bounds ``u_c', u_h'`` on the next difference for ``X`` and ``Y``.
    """

    bounds: _Bounds
    hidden: Tensor  # |W|, or |W_hh W_hr| with proj_size
    inputs: Tensor  # |U|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        bounds, (hidden, cell) = self.bounds, state
        pre = hidden @ self.hidden.mT
        pre = pre if inputs is None else pre + inputs @ self.inputs.mT
        i, f, g, o = pre.unsqueeze(-2).chunk(4, dim=-1)  # for the scenarios
        cell = bounds.cell_change(cell.unsqueeze(-2), f, bounds.driven(i, g))
        return worst(bounds.hidden_change(cell, o)), worst(cell)


class LSTMRecurrence(GatedRecurrence):
    """Adapter for LSTM recurrences.

    Norms: ``row`` (formula above with the best ``w`` per unit), ``tight`` (the same with weights on all entries, by
    nonlinear Perron iteration), ``l2`` (spectral norms), ``miller-hardt`` (the paper's conditions, Proposition 2).
    With ``proj_size`` the certificate's state is ``(m, c)`` with ``h = W_hr m``, and projections scale whole rows.
    """

    cell = "lstm"
    roles = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    gates = ("i", "f", "g", "o")
    leak = "f"
    partner = "i"
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
        input_gate, candidate = i.sigmoid(), Interval(tanh_least(g), tanh_magnitude(g))
        # |f c + i g| <= max(|c|, C): whatever a run starts from, it never leaves the larger of the two.
        new = input_gate.high * candidate.high
        cell = worst(new / keep.clamp(min=_LEAST_KEPT)).clamp(min=state_bound)
        if "weight_hr" in weights and state_bound > 0:
            cell = cell.maximum(self._first_cell(weights, drive, state_bound))
        return _Bounds(
            i=input_gate,
            f=Interval(torch.sigmoid(f.low).minimum(forget), forget),
            g=candidate,
            o=o.sigmoid(),
            keep=keep,
            slope_i=sigmoid_slope(i),
            slope_f=slope_f,
            slope_g=tanh_slope(g),
            slope_o=sigmoid_slope(o),
            cell=cell,
            tanh_cell=torch.tanh((forget * cell + new).minimum(cell)),
        )

    @staticmethod
    def _first_pre_activation(weights: Weights, drive: Interval, state_bound: float) -> tuple[Interval, ...]:
        """With ``proj_size``, the gates of the first step, whose ``h_0`` need be no ``W_hr m``."""
        bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else torch.zeros_like(drive.low)
        return drive.shift(bias).widen(reach(weights["weight_hh"], state_bound)).chunk(4)

    def _first_cell(self, weights: Weights, drive: Interval, state_bound: float) -> Tensor:
        """``f |c_0| + i |g|``, a bound on ``c`` after the first step with ``proj_size``."""
        i, f, g, _ = self._first_pre_activation(weights, drive, state_bound)
        return worst(torch.sigmoid(f.high) * state_bound + torch.sigmoid(i.high) * tanh_magnitude(g))

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
        rates, _ = _unit_rates(self.row_norms(weights), self._bounds(weights, drive, state_bound))
        return rates * linalg.inflation(matrix.shape[1])

    @staticmethod
    def _coupling(norms: Tensor, bounds: _Bounds) -> tuple[Tensor, Tensor]:
        """``X_j <= f w_j + b_j`` and ``Y_j <= o X_j + e_j`` with the largest slopes, from norms ``(4, units)``.

        ``b_j = C_j s_f n_fj + i_j s_g n_gj + g_j s_i n_ij`` and ``e_j = tanh(C_j) s_o n_oj``.
        """
        n_i, n_f, n_g, n_o = norms
        b = bounds.cell * bounds.slope_f * n_f
        b = b + bounds.i.high * bounds.slope_g * n_g + bounds.g.high * bounds.slope_i * n_i
        return b.clamp(min=_COUPLING_FLOOR), bounds.tanh_cell * bounds.slope_o * n_o

    def _row(self, norms: Tensor, bounds: _Bounds) -> Contraction:
        rates, witness = _unit_rates(norms, bounds)
        rate = rates.amax()
        # Units with a lower rate may have a larger weight: a better constant.
        larger = _largest_scale(rate, bounds, *self._coupling(norms, bounds))
        return Contraction(rate, (torch.ones_like(witness), witness.maximum(larger)))

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

    def contraction_in(
        self, weights: Weights, drive: Interval | None, witness: Contraction, *, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return the contraction in the maximum norm with the weights of a ``tight`` witness; those of c follow."""
        if drive is None or witness.order <= 2:
            return None
        matrix, bounds = self.recurrent_matrix(weights), self._bounds(weights, drive, state_bound)
        scale = witness.scales[0].to(matrix)
        norms = (matrix.abs() @ scale).view(len(self.gates), -1) / scale
        row = self._row(norms, bounds)
        scales = torch.cat((scale, row.scales[1] * scale))
        comparison = _Comparison(bounds, matrix.abs(), weights["weight_ih"].abs())
        rate = (torch.cat(comparison(scales.chunk(2), None)) / scales).amax().fmin(row.rate)
        return Contraction(rate * linalg.inflation(matrix.shape[1]), tuple(scales.chunk(2)))

    @staticmethod
    def _l2(matrix: Tensor, bounds: _Bounds) -> Contraction:
        w_i, w_f, w_g, w_o = matrix.chunk(4)

        def gain(scale: Tensor, block: Tensor) -> Tensor:
            return linalg.spectral_norm(scale[:, None] * block)

        b = gain(worst(bounds.cell * bounds.slope_f), w_f) + gain(worst(bounds.i.high * bounds.slope_g), w_g)
        b = (b + gain(worst(bounds.g.high * bounds.slope_i), w_i)).clamp(min=_COUPLING_FLOOR)
        e = gain(worst(bounds.tanh_cell * bounds.slope_o), w_o)
        f, o = (Interval(gate.low.amin(), gate.high.amax()) for gate in (bounds.f, bounds.o))
        rate = _joint_rate(f.high, b, o.high * f.high, o.high * b + e)
        one = torch.ones_like(bounds.cell)
        largest = bounds._replace(f=f, o=o, cell=bounds.cell.amax())
        return Contraction(rate, (one, one * _cell_scale(rate, largest, b, e)), order=2)

    def _miller_hardt(self, norms: Tensor, bounds: _Bounds) -> Contraction:
        """``(1 + sqrt(1 - f (1 - f))) / 2`` if the conditions of Proposition 2 hold, else infinity."""
        f, keep = bounds.f.high.amax(), bounds.keep.amin()
        b, e = self._coupling(norms, bounds)
        holds = (norms < miller_hardt_radii(keep)[:, None]).all() & (f < 1) & (bounds.cell <= 1 / keep).all()
        rate = torch.where(holds, (1 + (1 - f * keep).sqrt()) / 2, torch.inf)
        return Contraction(rate, (torch.ones_like(bounds.cell), _cell_scale(rate.clamp(max=1), bounds, b, e)))

    def budget(
        self, weights: Weights, drive: Interval, rate: float, *, norm: str, state_bound: float, leak_bound: float
    ) -> Budget:
        """Two conditions per unit: one on ``n_o``, one on the others; for ``l2`` a single one on spectral norms.

        For a gate in ``[., q]`` with the slope ``s_q`` and ``s'`` the slope of tanh the maximum of the module docstring
        over both is at most ``k`` times the larger of ``q s' P`` and ``s_q Q``, where ``k`` is its value where both are
        1. So::

            f (1 - f) C n_f + k_i max(i s_g n_g, s_i n_i) <= (rate - f) w    w = 1 / (k_o o)
            s_o n_o <= rate / k_o

        Lower gates keep them: ``f (1 - f) / (rate - f)`` rises with ``f`` for ``rate <= 1``, as its derivative has the
        sign of ``(f - rate)^2 + rate (1 - rate)``.
        """
        bounds = self._bounds(weights, drive, state_bound, leak_bound)
        if norm == "l2":
            return self._l2_budget(bounds, rate)
        tiny = torch.finfo(bounds.cell.dtype).tiny
        k_i = product_maximum(
            1 / (bounds.i.high * bounds.slope_g).clamp(min=tiny), 1 / bounds.slope_i, bounds.i, bounds.g
        )
        k_o = product_maximum(1 / bounds.o.high.clamp(min=tiny), 1 / bounds.slope_o, bounds.o, bounds.t)
        limit = (rate - bounds.f.high) / (k_o * bounds.o.high).clamp(min=tiny)
        coefficients = torch.stack(
            (
                k_i * bounds.slope_i,
                bounds.f.high * bounds.keep * bounds.cell,
                k_i * bounds.i.high * bounds.slope_g,
                k_o * bounds.slope_o * limit / rate,
            )
        )
        return Budget(coefficients, (limit - _COUPLING_FLOOR).clamp(min=0), _TERMS)

    @staticmethod
    def _l2_budget(bounds: _Bounds, rate: float) -> Budget:
        """``sum_q a_q n_q <= rate`` with ``a_o = tanh(C) s_o`` and the others multiplied by ``o rate/(rate - f)``."""
        i, f, g, o = (gate.high.amax(0, keepdim=True) for gate in (bounds.i, bounds.f, bounds.g, bounds.o))
        slopes = (bounds.slope_i, bounds.slope_f, bounds.slope_g, bounds.slope_o, bounds.cell, bounds.tanh_cell)
        s_i, s_f, s_g, s_o, cell, tanh_cell = (value.amax(0, keepdim=True) for value in slopes)
        loop = o * rate / (rate - f)
        coefficients = torch.stack((loop * g * s_i, loop * cell * s_f, loop * i * s_g, tanh_cell * s_o))
        return Budget(coefficients, (rate - _COUPLING_FLOOR * loop).clamp(min=0))

    def leading_budget(
        self, weights: Weights, norms: Tensor, leak: Tensor, rate: float, *, state_bound: float, leak_bound: float
    ) -> Budget | None:
        """``f n_f + max(n_g, n_i / 4) <= rate - f``, ``n_o <= 4 rate``; None with ``proj_size``.

        This is :meth:`budget` where nothing is known about the gates but ``f``: with all others anywhere in [0, 1] both
        ``k`` are 1, see :func:`~lightning_stable.recurrence.intervals.product_peak`, and ``(1 - f) C`` is at most 1.
        """
        if "weight_hr" in self.parameter_names():
            return None
        forget = torch.sigmoid(leak).clamp(max=leak_bound)
        # (1 - f) C, where C is that of runs from larger states.
        cell = ((1 - forget) * state_bound).clamp(min=1) if state_bound > 1 else 1
        limit = rate - forget
        one = torch.ones_like(limit)
        coefficients = torch.stack((one / 4, forget * cell, one, limit / (4 * rate)))
        return Budget(coefficients, (limit - _COUPLING_FLOOR).clamp(min=0), _TERMS)

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
            return worst(bounds.o.high * bounds.tanh_cell).clamp(min=state_bound)
        later = worst(bounds.o.high * bounds.tanh_cell)
        if state_bound == 0:
            return later
        first = torch.sigmoid(self._first_pre_activation(weights, drive, state_bound)[3].high)
        return later.maximum(worst(first) * torch.tanh(bounds.cell))

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


def _joint_rate(cell: Tensor, b: Tensor, loop: Tensor, hidden: Tensor) -> Tensor:
    """``rho([[cell, b], [loop, hidden]])``, the spectral radius for nonnegative entries, and a little more."""
    root: Tensor = ((cell - hidden).square() + 4 * b * loop).sqrt()
    return _RATE_SLACK * (cell + hidden + root) / 2


def _unit_rates(norms: Tensor, bounds: _Bounds) -> tuple[Tensor, Tensor]:
    """Return ``min over w of max(X / w, Y)`` of the module docstring, and ``w``, shapes ``(units,)``.

    ``X`` and ``Y`` are maxima of maps linear in ``w``, one for every ``f`` and every ``(o, t)``. For fixed ones the
    best rate is a spectral radius, and where the best ``w`` of that is tried the maxima show which ones to fix next
    (Howard's policy iteration). The rate returned is that of the best ``w`` tried, a witness like every other.

    Args:
        norms: Row norms, shape ``(4, units)``.
        bounds: Bounds of shape ``(units,)``, or ``(..., units)``: of several the worst counts, for one ``w``.
    """
    n_i, n_f, n_g, n_o = norms
    driven = bounds.driven(n_i, n_g).clamp(min=_COUPLING_FLOOR)
    steep = bounds.cell * n_f

    def largest(rows: Tensor, *values: Tensor) -> list[Tensor]:
        """Return the values where ``rows`` is largest over the leading dimensions."""
        if rows.dim() == 1:
            return list(values)
        index = rows.flatten(0, -2).argmax(0, keepdim=True)
        return [value.expand_as(rows).flatten(0, -2).gather(0, index)[0] for value in values]

    def linear(f: Tensor) -> Tensor:
        moved: Tensor = f * (1 - f).maximum(bounds.keep) * steep + driven
        return moved

    f = bounds.f.high
    b = linear(f)
    o, t = bounds.o.high, torch.zeros_like(f)
    cell_row = largest(b + f, f, b)
    hidden_row = largest(o * b, o * f, o * b)
    best, witness = torch.full_like(bounds.cell, torch.inf), torch.ones_like(bounds.cell)
    for _ in range(_WITNESS_ROUNDS if f.dim() == 1 else _SCENARIO_ROUNDS):
        rate = _joint_rate(*cell_row, *hidden_row)
        trial = (cell_row[1] / (rate - cell_row[0])).clamp(min=_LEAST_WEIGHT)
        f = sigmoid_peak(trial, steep, bounds.f)
        b = linear(f)
        change = f * trial + b
        o, t = product_peak(change, n_o, bounds.o, bounds.t)
        sharp, flat = o * (1 - t.square()), o * (1 - o) * t * n_o
        cell_row = largest(change, f, b)
        hidden_row = largest(sharp * change + flat, sharp * f, sharp * b + flat)
        rate = torch.maximum(cell_row[0] + cell_row[1] / trial, hidden_row[0] * trial + hidden_row[1])
        # NaN stays.
        witness, best = trial.where(~(rate >= best), witness), rate.where(~(rate >= best), best)
    change = bounds.cell_change(witness, n_f, driven)
    rates = torch.maximum(change / witness, bounds.hidden_change(change, n_o))
    (rate,) = largest(rates, rates)
    return _RATE_SLACK * rate, witness


def _largest_scale(rate: Tensor, bounds: _Bounds, b: Tensor, e: Tensor) -> Tensor:
    """``o (f w + b) + e <= rate``: return the largest such weight ``w`` on ``|dc|``, at most the box of ``c``.

    A weight beyond the box would only let differences of ``c`` disappear in rounding.
    """
    tiny = torch.finfo(rate.dtype).tiny
    largest = ((rate - e) / bounds.o.high.clamp(min=tiny) - b) / bounds.f.high.clamp(min=tiny)
    return (-worst(-largest)).minimum(bounds.cell)


def _cell_scale(rate: Tensor, bounds: _Bounds, b: Tensor, e: Tensor) -> Tensor:
    """``f w + b <= rate w`` and ``o (f w + b) + e <= rate``: return such a weight ``w`` on ``|dc|``."""
    smallest = worst(b / (rate - bounds.f.high).clamp(min=1e-30))
    return _largest_scale(rate, bounds, b, e).maximum(smallest).clamp(min=_LEAST_WEIGHT)
