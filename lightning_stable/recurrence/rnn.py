"""``nn.RNN`` and ``nn.RNNCell``: ``h' = phi(W h + U x + b)`` with ``phi`` = tanh or relu.

Both nonlinearities are 1-Lipschitz and act entry by entry, so every norm of ``W`` that is monotone under them is a
contraction rate, for all states and all inputs (Miller & Hardt, Stable Recurrent Models, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import BOX_ROUNDS, Contraction, Recurrence, State, Weights, reach
from lightning_stable.recurrence.intervals import Interval, tanh_magnitude, tanh_slope
from lightning_stable.recurrence.tubes import Metric, RNNTube, Tube


@dataclass(frozen=True)
class LinearComparison:
    """``T(u, e) = M u + N e``; for an RNN ``s (|W| u + |U| e)`` with the slope bounds ``s`` of the units."""

    hidden: Tensor  # M
    inputs: Tensor  # N

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        """Return the bound on the next difference."""
        pre = state[0] @ self.hidden.mT
        return (pre if inputs is None else pre + inputs @ self.inputs.mT,)


class RNNRecurrence(Recurrence):
    """Adapter for tanh and relu recurrences.

    Norms: ``l2`` (largest singular value), ``linf`` and ``l1`` (largest row and column sum), ``perron`` (maximum
    norm with the best positive weights), ``diagonal`` (Euclidean norm with the best positive weights), ``full`` (the
    best quadratic form with multipliers, :mod:`~lightning_stable.linalg.quadratic`: it uses that slopes are not
    negative, which the others do not).
    """

    cell = "rnn"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf", "l1", "perron", "diagonal", "full")
    methods: ClassVar[tuple[str, ...]] = ("euclidean", "rescale")
    needs_drive = False
    tube_norm = "full"

    @property
    def nonlinearity(self) -> str:
        """``"tanh"`` or ``"relu"``."""
        return str(self.module.nonlinearity)

    def step(self, inputs: Tensor, state: State) -> State:
        """``h' = phi(W h + U x + b)``."""
        p = self.parameters()
        pre = torch.nn.functional.linear(inputs, p["weight_ih"], p.get("bias_ih"))
        pre = pre + torch.nn.functional.linear(state[0], p["weight_hh"], p.get("bias_hh"))
        return (torch.tanh(pre) if self.nonlinearity == "tanh" else torch.relu(pre),)

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros of shape ``(..., hidden_size)``."""
        return (inputs.new_zeros(*inputs.shape[:-1], self.parameters()["weight_hh"].shape[1]),)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """1 for tanh, less where the drive is small; ``beta / (1 - rate)`` for relu."""
        hidden = weights["weight_hh"]
        offset = bias(weights)
        if self.nonlinearity == "tanh":
            one = torch.ones_like(offset)
            if drive is None:
                return one
            return tanh_magnitude(drive.shift(offset).widen(hidden.abs().sum(1) * max(1.0, state_bound)))
        if drive is None:
            return None
        # ||h'||_2 <= ||W||_2 ||h||_2 + beta bounds zero-started runs, and every entry is at most the norm.
        rate = linalg.spectral_norm(hidden)
        beta = drive.shift(offset).high.clamp(min=0).norm()
        start = state_bound * hidden.shape[1] ** 0.5
        bound = torch.where(rate < 1, beta / (1 - rate).clamp(min=1e-30), torch.inf).clamp(min=start)
        return bound.expand_as(offset)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the chosen norm of ``W``, for all inputs and states: ``drive`` and ``state_bound`` play no part."""
        hidden = weights["weight_hh"]
        one = torch.ones_like(hidden[0])
        match self.checked_norm(norm):
            case "l2":
                result = Contraction(linalg.spectral_norm(hidden), (one,), order=2)
            case "linf":
                result = Contraction(linalg.row_norm(hidden), (one,))
            case "l1":
                result = Contraction(linalg.column_norm(hidden), (one,), order=1)
            case "perron":
                scale = linalg.perron_weights(hidden)
                result = Contraction(linalg.weighted_row_norm(hidden, scale), (scale,))
            case "full":
                return self._in_form(weights, linalg.quadratic_form(hidden))
            case _:  # diagonal
                scale = linalg.diagonal_weights(hidden)
                result = Contraction(linalg.diagonal_norm(hidden, scale), (1 / scale,), order=2)
        return result._replace(rate=result.rate * linalg.inflation(hidden.shape[1]))

    def contraction_in(
        self, weights: Weights, drive: Interval | None, witness: Contraction, *, state_bound: float = 1.0
    ) -> Contraction | None:
        """Check the form of a ``full`` witness; None for other norms."""
        if witness.form is None:
            return None
        hidden = weights["weight_hh"]
        return self._in_form(weights, form_of(witness).to(hidden))

    def projection_witness(
        self, weights: Weights, drive: Interval | None, rate: float, *, norm: str, state_bound: float = 1.0
    ) -> Contraction | None:
        """Return a form for ``full``, as near to the Euclidean norm as the rate allows; None for other norms."""
        return self._in_form(weights, linalg.quadratic_form(weights["weight_hh"], rate)) if norm == "full" else None

    @staticmethod
    def _in_form(weights: Weights, witness: linalg.QuadraticForm) -> Contraction:
        rate = linalg.quadratic_norm(weights["weight_hh"], witness)
        return Contraction(rate, (witness.scale.reciprocal(),), 2, witness.form)

    def window_contractions(self, weights: Weights, contraction: Contraction) -> tuple[Contraction, ...]:
        """Add the one in the best form, for which windows are shorter by as much as its rate is lower."""
        return (
            (contraction,)
            if contraction.form is not None
            else (contraction, self.contraction(weights, None, norm="full"))
        )

    def input_gain(self, weights: Weights, contraction: Contraction) -> Tensor:
        """``||diag(1 / scales) U||_2``, in a form ``||A U||_2``: the proof of the rate with ``U x`` for ``W h``."""
        if contraction.order != 2:
            return super().input_gain(weights, contraction)
        inputs = weights["weight_ih"] / contraction.scales[0][:, None]
        return linalg.spectral_norm(inputs) if contraction.form is None else linalg.input_norm(inputs, contraction.form)

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State | None:
        """``max |h|``: the image of tanh; for relu the norm of the states, taken through one more step."""
        hidden = weights["weight_hh"]
        box = self.output_bound(weights, drive, state_bound)
        if box is None or drive is None:
            return None if box is None else (box.clamp(min=state_bound),)
        driven = drive.shift(bias(weights))
        if self.nonlinearity == "relu":
            # Every entry of the bound is one on the Euclidean norm.
            after = driven.widen(torch.linalg.vector_norm(hidden, dim=1) * box).high.clamp(min=0)
            return (box.minimum(after).clamp(min=state_bound),)
        for _ in range(BOX_ROUNDS):
            box = tanh_magnitude(driven.widen(reach(hidden, box.clamp(min=state_bound))))
        return (box.clamp(min=state_bound),)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> LinearComparison:
        """Return the :class:`LinearComparison`; the slopes of tanh are those on the box of the states."""
        hidden, inputs = weights["weight_hh"].abs(), weights["weight_ih"].abs()
        box = self.state_box(weights, drive, state_bound)
        if self.nonlinearity == "relu" or drive is None or box is None:
            return LinearComparison(hidden, inputs)
        slope = tanh_slope(drive.shift(bias(weights)).widen(reach(hidden, box[0])))[:, None]
        return LinearComparison(slope * hidden, slope * inputs)

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.RNNTube`."""
        return RNNTube(weights, metric, relu=self.nonlinearity == "relu")


def form_of(contraction: Contraction) -> linalg.QuadraticForm:
    """Return the quadratic form of a contraction of order 2: scales alone are those of the identity."""
    scale, form = contraction.scales[0].reciprocal(), contraction.form
    return linalg.QuadraticForm(scale, torch.ones_like(scale).diag() if form is None else form)


def bias(weights: Weights) -> Tensor:
    """``bias_ih + bias_hh`` or zeros."""
    if "bias_ih" in weights:
        return weights["bias_ih"] + weights["bias_hh"]
    return torch.zeros_like(weights["weight_hh"][:, 0])
