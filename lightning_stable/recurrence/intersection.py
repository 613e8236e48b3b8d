"""``IntersectionRNN``: the state ``h`` of a UGRNN, and the output ``y = g_y p + (1 - g_y) relu(a)``.

``p`` is the input or an affine map of it, ``a`` and the pre-activation of ``g_y`` are affine in the input and in the
state *before* the step. Between two runs the output changes by at most::

    |dy| <= max over g_y of ( g_y |dp| + (1 - g_y) |da| + g_y (1 - g_y) D |d pre_g| ),    D = max |p - relu(a)|

The output is no part of the state, so the rate is that of ``h`` alone; it is bounded where the input is, and may grow
from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.base import mix
from lightning_stable.recurrence.base import State, Weights, reach
from lightning_stable.recurrence.intervals import Interval, sigmoid_maximum, worst
from lightning_stable.recurrence.tubes import IntersectionTube, Metric, Tube
from lightning_stable.recurrence.ugrnn import UGRNNRecurrence


class _Outputs(NamedTuple):
    """Intervals of the parts of ``y``, of shape ``(units,)`` or ``(scenarios, units)``."""

    gate: Interval  # pre-activation
    candidate: Interval  # relu(a)
    passed: Interval


@dataclass(frozen=True)
class _OutputComparison:
    """The bound of the module docstring, ``h`` before the step; ``|da|`` is 0 where ``relu`` is closed."""

    gate: Interval
    apart: Tensor  # D
    is_open: Tensor
    hidden: Tensor  # |W_y|
    inputs: Tensor  # |U_y|
    passing: Tensor

    def __call__(self, state: State, inputs: Tensor | None) -> Tensor:
        """Return the bound on the difference of the outputs."""
        pre = state[0] @ self.hidden.mT
        passed = torch.zeros_like(state[0])
        if inputs is not None:
            pre, passed = pre + inputs @ self.inputs.mT, inputs @ self.passing.mT
        passed, (gate, candidate) = passed.unsqueeze(-2), pre.unsqueeze(-2).chunk(2, dim=-1)  # for the scenarios
        candidate = candidate * self.is_open
        return worst(candidate + sigmoid_maximum(passed - candidate, self.apart * gate, self.gate))


class IntersectionRecurrence(UGRNNRecurrence):
    """Adapter for intersection recurrences.

    The state of a step is ``(h, y)``, that of the certificate ``h``. Norms and projections are those of UGRNN: what
    makes the output is never touched.
    """

    cell = "intersection"
    roles: ClassVar[tuple[str, ...]] = (
        *UGRNNRecurrence.roles,
        *("weight_iy", "weight_hy", "bias_iy", "bias_hy", "weight_ix", "bias_ix"),
    )
    gates = ("g", "h")
    partner = "h"
    state_parts = 1

    # --------------------------------------------------------------- state map
    def step(self, inputs: Tensor, state: State) -> State:
        """``h`` as a UGRNN, ``y = g_y p + (1 - g_y) relu(a)``; the old ``y`` does not matter."""
        p, (hidden, _) = self.parameters(), state
        pre = F.linear(inputs, p["weight_iy"], p.get("bias_iy")) + F.linear(hidden, p["weight_hy"], p.get("bias_hy"))
        gate, candidate = pre.chunk(2, dim=-1)
        passed = F.linear(inputs, p["weight_ix"], p.get("bias_ix")) if "weight_ix" in p else inputs
        return *super().step(inputs, (hidden,)), mix(gate.sigmoid(), passed, candidate.relu())

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros, twice of shape ``(..., hidden_size)``."""
        (hidden,) = super().initial_state(inputs)
        return hidden, torch.zeros_like(hidden)

    def output(self, state: State) -> Tensor:
        """Return ``y``."""
        return state[1]

    # ------------------------------------------------------------- certificate
    def driven_rows(self, weights: Weights) -> Tensor:
        """Return ``weight_ih``, ``weight_iy``, and the map to what may pass, one above the other."""
        return torch.cat((weights["weight_ih"], weights["weight_iy"], _passing(weights)))

    def pre_activation(self, weights: Weights, drive: Interval, state_bound: float | Tensor) -> tuple[Interval, ...]:
        """Return the intervals of the pre-activations of the state's gates."""
        rows = len(weights["weight_ih"])
        return super().pre_activation(weights, drive.rows(slice(rows)), state_bound)

    def _outputs(self, weights: Weights, drive: Interval, state_bound: float | Tensor) -> _Outputs:
        rows = len(weights["weight_ih"])
        gate, candidate, passed = drive.rows(slice(rows, None)).chunk(3)
        radius = reach(weights["weight_hy"], state_bound)
        if "bias_iy" in weights:
            bias = (weights["bias_iy"] + weights["bias_hy"]).chunk(2)
            gate, candidate = gate.shift(bias[0]), candidate.shift(bias[1])
            passed = passed.shift(weights["bias_ix"]) if "bias_ix" in weights else passed
        gate, candidate = (part.widen(size) for part, size in zip((gate, candidate), radius.chunk(2), strict=True))
        return _Outputs(gate, Interval(candidate.low.clamp(min=0), candidate.high.clamp(min=0)), passed)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """``|y| <= max over g of (g |p| + (1 - g) relu(a))``; None when nothing is known about the inputs."""
        if drive is None:
            return None
        outputs = self._outputs(weights, drive, max(1.0, state_bound))
        gates = (torch.sigmoid(end) for end in outputs.gate)
        return worst(torch.stack([mix(g, outputs.passed.magnitude, outputs.candidate.high) for g in gates]).amax(0))

    def output_comparison(
        self, weights: Weights, drive: Interval | None, state_bound: float
    ) -> _OutputComparison | None:
        """Return the bound of the module docstring; None when nothing is known about the inputs."""
        if drive is None:
            return None
        outputs = self._outputs(weights, drive, self._reachable(weights, drive, state_bound)[1])
        passed, candidate = outputs.passed, outputs.candidate
        apart = torch.maximum(passed.high - candidate.low, candidate.high - passed.low)
        return _OutputComparison(
            outputs.gate.sigmoid(),
            apart,
            candidate.high > 0,
            weights["weight_hy"].abs(),
            weights["weight_iy"].abs(),
            _passing(weights).abs(),
        )

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.IntersectionTube`."""
        return IntersectionTube(weights, metric)


def _passing(weights: Weights) -> Tensor:
    """Return the linear map to what may pass, shape ``(units, features)``."""
    if "weight_ix" in weights:
        return weights["weight_ix"]
    inputs = weights["weight_ih"]
    return torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
