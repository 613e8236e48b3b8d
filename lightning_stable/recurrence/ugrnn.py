"""``UGRNN``: ``g = sigmoid(...)``, ``c = tanh(...)``, ``h' = g h + (1 - g) c``.

This is a gated mean as in :mod:`leaky` with ``A_j = n_cj``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lightning_stable.cells.base import mix
from lightning_stable.recurrence.base import State, Weights
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.leaky import Bounds, MixedRecurrence
from lightning_stable.recurrence.tubes import Metric, Tube, UGRNNTube


class UGRNNRecurrence(MixedRecurrence):
    """Adapter for UGRNN recurrences.

    Norms: ``row`` (formula above), ``tight`` (nonlinear Perron iteration), ``l2`` (spectral norms).
    """

    cell = "ugrnn"
    gates = ("g", "c")
    leak = "g"
    partner = "c"
    shares = (1 / 2, 1 / 2)

    def step(self, inputs: Tensor, state: State) -> State:
        """``c = tanh(W_c h + U_c x + b)``, ``h' = g h + (1 - g) c``."""
        p = self.parameters()
        pre = F.linear(inputs, p["weight_ih"], p.get("bias_ih")) + F.linear(state[0], p["weight_hh"], p.get("bias_hh"))
        gate, candidate = pre.chunk(2, dim=-1)
        return (mix(gate.sigmoid(), state[0], candidate.tanh()),)

    def bounds(
        self, weights: Weights, drive: Interval, state_bound: float | Tensor, leak_bound: float | None = None
    ) -> Bounds:
        """Return the bounds of gate and candidate."""
        gate, candidate = self.pre_activation(weights, drive, state_bound)
        return Bounds.of(gate, candidate, state_bound, leak_bound)

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.UGRNNTube`."""
        return UGRNNTube(weights, metric)
