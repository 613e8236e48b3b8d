r"""``LeakyRNN``: ``h' = a h + (1 - a) tanh(W h + U x + b)`` with a leak ``a = sigmoid(leak)`` per unit.

Two runs that differ by ``e`` differ by ``e' = A e + B D W e`` one step later, with ``A = diag(a)``, ``B = I - A`` and
slopes ``D`` between 0 and 1, whatever states and inputs are. In the Euclidean norm the state map contracts at::

    rate = lambda_max [  A   (B W)^T ]
                      [ B W     A    ]

For ``y = D W e`` and any ``s_j > 0`` with ``a_j + b_j s_j = rate`` Young's inequality gives
``(a e + b y)^2 <= rate (a e^2 + b y^2 / s)`` entry by entry. As ``|y_j| <= |(W e)_j|``, the sum is at most
``rate^2 |e|^2`` if ``W^T B^2 (rate - A)^-1 W <= rate - A``: the Schur complement of ``rate - [...] >= 0``. With one
leak for all units the rate is ``a + (1 - a) ||W||_2``.

Since ``D`` is not negative there are sharper forms, see :func:`~lightning_stable.linalg.leaky_norm`; with one leak for
all units the rate is then about ``a + (1 - a) r`` or less, where ``r`` is the ``full`` rate of the plain RNN.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable import linalg
from lightning_stable.cells.base import mix
from lightning_stable.recurrence.base import BOX_ROUNDS, Contraction, LeakingRecurrence, State, Weights, reach
from lightning_stable.recurrence.intervals import Interval, tanh_magnitude, tanh_slope
from lightning_stable.recurrence.rnn import LinearComparison, bias
from lightning_stable.recurrence.tubes import LeakyRNNTube, Metric, Tube

# Of the search for a form: each round starts from the rate that the one before has found.
_ROUNDS = 3
# So close to the largest leak there is nothing to be gained.
_NEAR = 1e-9


class LeakyRNNRecurrence(LeakingRecurrence):
    """Adapter for leaky RNNs.

    Norms: ``l2`` (module docstring), ``linf`` (``max_j a_j + (1 - a_j) n_j`` with the row sums ``n`` of ``|W|``),
    ``full`` (a quadratic form with multipliers, where that is better than ``l2``).
    """

    cell = "leaky"
    leak = "leak"
    roles: ClassVar[tuple[str, ...]] = (*LeakingRecurrence.roles, "leak")
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf", "full")
    methods: ClassVar[tuple[str, ...]] = ("euclidean", "rescale")
    needs_drive = False
    tube_norm = "l2"

    @property
    def projected_roles(self) -> tuple[str, ...]:
        """The recurrent weights and the leaks."""
        return ("weight_hh", "leak")

    @property
    def can_close(self) -> bool:
        """Always: the leak is a parameter."""
        return True

    # --------------------------------------------------------------- state map
    def step(self, inputs: Tensor, state: State) -> State:
        """``h' = a h + (1 - a) tanh(W h + U x + b)``."""
        p = self.parameters()
        pre = F.linear(inputs, p["weight_ih"], p.get("bias_ih")) + F.linear(state[0], p["weight_hh"], p.get("bias_hh"))
        return (mix(p["leak"].sigmoid(), state[0], pre.tanh()),)

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros of shape ``(..., hidden_size)``."""
        return (inputs.new_zeros(*inputs.shape[:-1], self.parameters()["weight_hh"].shape[1]),)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """``max(1, state_bound)``: ``h'`` is a mean of ``h`` and a tanh."""
        return torch.full_like(weights["leak"], max(1.0, state_bound))

    # ------------------------------------------------------------- certificate
    def leak_maximum(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """Return the leaks."""
        return torch.sigmoid(weights["leak"])

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the rate of the chosen norm, for all inputs and states: ``drive`` and ``state_bound`` play no part."""
        leak, entered = torch.sigmoid(weights["leak"]), entering(weights)
        margin = linalg.inflation(4 * len(leak))
        one = torch.ones_like(leak)
        if self.checked_norm(norm) == "linf":
            return Contraction((leak + entered.abs().sum(1)).amax() * margin, (one,))
        plain = Contraction(_euclidean_rate(leak, entered) * margin, (one,), order=2)
        return self._in_best_form(weights, plain) if norm == "full" else plain

    @staticmethod
    def _in_best_form(weights: Weights, plain: Contraction) -> Contraction:
        """Return the best of a few forms, and of the Euclidean one.

        Where ``y`` and ``e`` are measured by ``rate - A`` as in the module docstring, the leaks are out of the way, and
        the forms are those of a plain RNN with the matrix ``(rate - A)^(-1/2) B W (rate - A)^(-1/2)``.
        """
        leak, entered = torch.sigmoid(weights["leak"]), entering(weights)
        best = plain._replace(form=torch.ones_like(leak).diag())
        rate, top = plain.rate, leak.amax()
        for _ in range(_ROUNDS):
            if not top * (1 + _NEAR) < rate < torch.inf:
                break
            rest = rate - leak
            root = rest.sqrt()
            inner = entered / root[:, None] / root
            found = linalg.quadratic_form(inner)
            scale = root * found.scale
            exact = linalg.leaky_norm(leak, scale[:, None] * entered / scale, rate / rest, found.form)
            if exact < best.rate:
                best = Contraction(exact, (scale.reciprocal(),), 2, found.form)
            rate = top + (rate - top) * linalg.quadratic_norm(inner, found).clamp(max=1)
        return best

    def input_gain(self, weights: Weights, contraction: Contraction) -> Tensor:
        """``||diag(1 / scales) B U||_2``; infinite in a form, where entries alone are bounded."""
        if contraction.order != 2 or contraction.form is not None:
            return super().input_gain(weights, contraction)
        keep = torch.sigmoid(-weights["leak"])
        return linalg.spectral_norm((keep / contraction.scales[0])[:, None] * weights["weight_ih"])

    # ------------------------------------------------------------- comparison
    def _candidate(self, weights: Weights, drive: Interval, box: Tensor) -> Interval:
        return drive.shift(bias(weights)).widen(reach(weights["weight_hh"], box))

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """The largest candidate, at least ``state_bound``."""
        box = torch.ones_like(weights["leak"]).clamp(min=state_bound)
        if drive is not None:
            for _ in range(BOX_ROUNDS):
                box = tanh_magnitude(self._candidate(weights, drive, box)).clamp(min=state_bound)
        return (box,)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> LinearComparison:
        """``T(u, e) = a u + (1 - a) s (|W| u + |U| e)`` with the slopes ``s`` of tanh on the box of the states."""
        steep = torch.sigmoid(-weights["leak"])
        box = self.state_box(weights, drive, state_bound)
        if drive is not None and box is not None:
            steep = steep * tanh_slope(self._candidate(weights, drive, box[0]))
        hidden, inputs = (steep[:, None] * weights[role].abs() for role in ("weight_hh", "weight_ih"))
        return LinearComparison(hidden + torch.sigmoid(weights["leak"]).diag(), inputs)

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.LeakyRNNTube`."""
        return LeakyRNNTube(weights, metric)


def entering(weights: Weights) -> Tensor:
    """``B W``: the recurrent matrix times what the leaks let in."""
    return torch.sigmoid(-weights["leak"])[:, None] * weights["weight_hh"]


def _euclidean_rate(leak: Tensor, entered: Tensor) -> Tensor:
    """``lambda_max`` of the module docstring; infinite where the matrix is not finite."""
    finite = torch.isfinite(entered).all() & torch.isfinite(leak).all()
    entered, leak = entered.where(finite, 0.0), leak.where(finite, 0.0)
    kept = leak.diag()
    matrix = torch.cat((torch.cat((kept, entered.mT), 1), torch.cat((entered, kept), 1)))
    largest: Tensor = torch.linalg.eigvalsh(matrix)[-1]
    return largest.where(finite, torch.inf)
