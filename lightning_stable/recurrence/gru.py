"""``nn.GRU`` and ``nn.GRUCell``: ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``, ``h' = (1 - z) n + z h``.

With ``q_j = |W_hn h + b_hn|_j`` at its largest the candidate's pre-activation changes by at most ``A_j |dh|``, where::

    A_j = max over r in [r_low, r_high] of ( r n_nj + r (1 - r) q_j n_rj )

All else is shared by the cells with such a mean, see :mod:`leaky`. The reset gate multiplies *after* ``b_hn`` is
added, as PyTorch does it; published conditions for the other variant do not hold here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Budget, State, Weights, reach
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.leaky import Bounds, MixedRecurrence
from lightning_stable.recurrence.tubes import GRUTube, Metric, Tube


class GRURecurrence(MixedRecurrence):
    """Adapter for GRU recurrences.

    Norms: ``row`` (formula above), ``tight`` (nonlinear Perron iteration), ``l2`` (spectral norms).
    """

    cell = "gru"
    gates = ("r", "z", "n")
    leak = "z"
    partner = "n"
    shares = (1 / 3, 1 / 3, 1 / 3)

    def step(self, inputs: Tensor, state: State) -> State:
        """``n = tanh(U_n x + b + r (W_n h + b_hn))``, ``h' = (1 - z) n + z h``; torch's gate order is r, z, n."""
        p = self.parameters()
        r_in, z_in, n_in = torch.nn.functional.linear(inputs, p["weight_ih"], p.get("bias_ih")).chunk(3, dim=-1)
        r_h, z_h, n_h = torch.nn.functional.linear(state[0], p["weight_hh"], p.get("bias_hh")).chunk(3, dim=-1)
        reset, update = torch.sigmoid(r_in + r_h), torch.sigmoid(z_in + z_h)
        candidate = torch.tanh(n_in + reset * n_h)
        return ((1 - update) * candidate + update * state[0],)

    def bounds(
        self, weights: Weights, drive: Interval, state_bound: float | Tensor, leak_bound: float | None = None
    ) -> Bounds:
        """Return the bounds, with those of the reset gate and of what it multiplies."""
        r, z, _ = self.pre_activation(weights, drive, state_bound)
        units = z.low.shape[-1]
        zeros = torch.zeros_like(weights["weight_hh"][0])
        bias_in = weights["bias_ih"][2 * units :] if "bias_ih" in weights else zeros
        bias_hidden = weights["bias_hh"][2 * units :] if "bias_hh" in weights else zeros
        radius = reach(weights["weight_hh"][2 * units :], state_bound)
        reset = r.sigmoid()
        hidden_part = Interval(bias_hidden - radius, bias_hidden + radius)
        gated = reset.times(hidden_part)
        driven = drive.rows(slice(2 * units, None)).shift(bias_in)
        pre_n = Interval(driven.low + gated.low, driven.high + gated.high)
        return Bounds.of(z, pre_n, state_bound, leak_bound, reset, hidden_part.magnitude)

    def leading_budget(
        self, weights: Weights, norms: Tensor, leak: Tensor, rate: float, *, state_bound: float, leak_bound: float
    ) -> Budget:
        """Return :meth:`budget` with ``r = |n| = 1`` and the steepest slope of the candidate."""
        state = max(1.0, state_bound)
        update, keep = torch.sigmoid(leak).clamp(max=leak_bound), torch.sigmoid(-leak).clamp(min=1 - leak_bound)
        multiplied = norms[2] * state
        if "bias_hh" in weights:
            multiplied = multiplied + weights["bias_hh"].view_as(norms)[2].abs()
        coefficients = torch.stack((multiplied / 4, update * (state + 1), torch.ones_like(leak)))
        return Budget(coefficients, ((rate - update) / keep).clamp(min=0))

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.GRUTube`."""
        return GRUTube(weights, metric)
