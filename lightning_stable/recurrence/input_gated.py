"""``MinGRU`` and ``MinLSTM``: ``h' = a(x) h + (1 - a(x)) n(x)``, where neither leak nor candidate reads the state.

Two runs on the same inputs that differ by ``e`` differ by ``a(x) e`` one step later, entry by entry. So the rate is
the largest leak over the admissible inputs, in every norm that is monotone in the entries; and a run that restarted
from zero ``k`` steps ago is off by ``(product of the last k leaks) h_(t-k)``.

Where the inputs differ as well, as above another layer, the leak is a gate ``a = sigmoid(p)`` as that of
:mod:`leaky`, with candidate and leak that do not change with the state::

    |dh'| <= max over a of ( a |dh| + (1 - a) (|dn| + a (S + |n|) |dp|) )
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable import linalg
from lightning_stable.cells.input_gated import MinGRU, MinLSTM, normalized_leak
from lightning_stable.recurrence.base import Contraction, LeakingRecurrence, Pairing, State, Weights
from lightning_stable.recurrence.intervals import Interval, worst
from lightning_stable.recurrence.leaky import Bounds
from lightning_stable.recurrence.tubes import Metric, MinGRUTube, MinLSTMTube, Tube

# Rows of a gate, their biases if there are any, and its bound: returns rows and biases that obey it.
Lowered = Callable[[Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class _Comparison:
    """The bound of the module docstring on differences of ``h`` and of the input."""

    bounds: Bounds
    leak: Tensor  # |dp| <= leak |dx|
    candidate: Tensor  # |U_n|

    def __call__(self, state: State, inputs: Tensor | None) -> State:
        """Return the bound on the next difference."""
        hidden = state[0].unsqueeze(-2)  # for the scenarios
        leak, driven = torch.zeros_like(hidden), torch.zeros_like(hidden)
        if inputs is not None:
            leak, driven = (inputs.unsqueeze(-2) @ weight.mT for weight in (self.leak, self.candidate))
        return (worst(self.bounds.change(hidden, torch.cat((leak, torch.zeros_like(leak)), -1), driven)),)


class InputGatedRecurrence(LeakingRecurrence):
    """The base of adapters for cells whose gates read the input alone.

    Norms: ``row``, ``tight`` and ``l2``, all with the same rate.
    """

    leak = "leak"
    leak_power = 1  # nothing else takes a part of the rate
    blocks: ClassVar[int]
    roles: ClassVar[tuple[str, ...]] = ("weight_ih", "bias_ih")
    recurrent_roles: ClassVar[tuple[str, ...]] = ()
    norms: ClassVar[tuple[str, ...]] = ("row", "tight", "l2")
    methods: ClassVar[tuple[str, ...]] = ("euclidean",)

    @property
    def projected_roles(self) -> tuple[str, ...]:
        """The weights and biases of the leak."""
        return self.roles

    def recurrent_blocks(self, weights: Weights) -> dict[str, Tensor]:
        """Return nothing: there is no recurrent matrix."""
        return {}

    # --------------------------------------------------------------- state map
    @abstractmethod
    def affine(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leak ``a``, and ``(1 - a) n``."""

    def _driven(self, inputs: Tensor) -> Tensor:
        p = self.parameters()
        return F.linear(inputs, p["weight_ih"], p.get("bias_ih"))

    def step(self, inputs: Tensor, state: State) -> State:
        """``h' = a h + (1 - a) n``."""
        leak, term = self.affine(inputs)
        return (torch.addcmul(term, leak, state[0]),)

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros of shape ``(..., hidden_size)``."""
        return (inputs.new_zeros(*inputs.shape[:-1], len(self.parameters()["weight_ih"]) // self.blocks),)

    def output_bound(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor | None:
        """``max(1, state_bound)``: ``h'`` is a mean of ``h`` and a tanh."""
        return torch.full_like(
            weights["weight_ih"][: len(weights["weight_ih"]) // self.blocks, 0], max(1.0, state_bound)
        )

    # ------------------------------------------------------------- certificate
    @abstractmethod
    def with_bounded_gates(self, weights: Weights, bound: float, lowered: Lowered) -> dict[str, Tensor]:
        """Return weights near these whose leak is at most ``bound``.

        Args:
            weights: Weights by role.
            bound: In (0, 1).
            lowered: Moves the rows and biases of a gate so that it is at most at a bound.
        """

    @abstractmethod
    def leak_interval(self, weights: Weights, drive: Interval) -> Interval:
        """Return the interval of ``p``, the pre-activation of the leak ``sigmoid(p)``."""

    @abstractmethod
    def _leak_change(self, weights: Weights, drive: Interval) -> Tensor:
        """Return a matrix with ``|dp| <= matrix |dx|``, shape ``(units, input_size)``."""

    def _shifted(self, weights: Weights, drive: Interval) -> Interval:
        return drive.shift(weights["bias_ih"]) if "bias_ih" in weights else drive

    def leak_maximum(self, weights: Weights, drive: Interval | None, state_bound: float) -> Tensor:
        """Return the largest value of the leak, shape ``(units,)``."""
        assert drive is not None
        return torch.sigmoid(worst(self.leak_interval(weights, drive).high))

    def unit_rates(self, weights: Weights, drive: Interval | None, *, state_bound: float = 1.0) -> Tensor:
        """Return the largest leaks; infinite when nothing is known about the inputs."""
        if drive is None:
            return torch.full_like(self._zeros(weights), torch.inf)
        return self.leak_maximum(weights, drive, state_bound) * linalg.inflation(8)

    def _zeros(self, weights: Weights) -> Tensor:
        return torch.zeros_like(weights["weight_ih"][: len(weights["weight_ih"]) // self.blocks, 0])

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return the largest leak; infinite when nothing is known about the inputs."""
        rates = self.unit_rates(weights, drive, state_bound=state_bound)
        order = 2 if self.checked_norm(norm) == "l2" else torch.inf
        return Contraction(rates.amax(), (torch.ones_like(rates),), order)

    # ------------------------------------------------------------- comparison
    def _bounds(self, weights: Weights, drive: Interval, state_bound: float) -> tuple[Bounds, Tensor]:
        candidate = self._shifted(weights, drive).chunk(self.blocks)[-1]
        bounds = Bounds.of(self.leak_interval(weights, drive), candidate, state_bound, None)
        box = worst(bounds.n.high).clamp(min=state_bound)
        return bounds._replace(state=box), box

    def state_box(self, weights: Weights, drive: Interval | None, state_bound: float) -> State:
        """The largest candidate, at least ``state_bound``."""
        if drive is None:
            return (torch.ones_like(self._zeros(weights)).clamp(min=state_bound),)
        return (self._bounds(weights, drive, state_bound)[1],)

    def comparison(self, weights: Weights, drive: Interval | None, state_bound: float) -> _Comparison | None:
        """Return the bound of the module docstring; None when nothing is known about the inputs."""
        if drive is None:
            return None
        candidate = weights["weight_ih"].chunk(self.blocks)[-1].abs()
        return _Comparison(self._bounds(weights, drive, state_bound)[0], self._leak_change(weights, drive), candidate)


class MinGRURecurrence(InputGatedRecurrence):
    """Adapter for minGRU recurrences: the leak is ``1 - z``, and exactly bounded where the drive of ``z`` is."""

    cell = "mingru"
    blocks = 2

    def affine(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``1 - z`` and ``z n``."""
        return MinGRU.coefficients(self._driven(inputs))

    def with_bounded_gates(self, weights: Weights, bound: float, lowered: Lowered) -> dict[str, Tensor]:
        """Raise ``z`` to at least ``1 - bound``."""
        (gate, candidate), (bias, other) = _blocks(weights, 2)
        gate, bias = lowered(-gate, None if bias is None else -bias, bound)
        return _joined((-gate, candidate), (None if bias is None else -bias, other))

    def leak_interval(self, weights: Weights, drive: Interval) -> Interval:
        """The drive of ``z``, negated."""
        gate = self._shifted(weights, drive).chunk(2)[0]
        return Interval(-gate.high, -gate.low)

    def _leak_change(self, weights: Weights, drive: Interval) -> Tensor:
        return weights["weight_ih"].chunk(2)[0].abs()

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.MinGRUTube`."""
        return MinGRUTube(weights, metric)


class MinLSTMRecurrence(InputGatedRecurrence):
    """Adapter for minLSTM recurrences.

    The leak ``f / (f + i)`` is ``sigmoid(p)`` with ``p = softplus(-pre_i) - softplus(-pre_f)``. Each pre-activation is
    bounded, and so is their difference ``d``. ``p`` rises with ``pre_f`` and falls with ``pre_i``. For a given
    difference it is largest at the smallest ``pre_i`` if ``d >= 0`` and at the largest ``pre_f`` if not; so its maximum
    is at a corner. Of a finite set all points are looked at.
    """

    cell = "minlstm"
    blocks = 3

    def affine(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f / (f + i)`` and ``i / (f + i) n``."""
        return MinLSTM.coefficients(self._driven(inputs))

    def pairing(self, weights: Weights) -> Pairing | None:
        """Return the difference of the gates, which decides the leak, and the forget gate."""
        return Pairing(len(weights["weight_ih"]) // 3, leak=3, partner=0)

    def driven_rows(self, weights: Weights) -> Tensor:
        """Return ``weight_ih``, and ``U_f - U_i`` below it."""
        forget, enter, _ = weights["weight_ih"].chunk(3)
        return torch.cat((weights["weight_ih"], forget - enter))

    def with_bounded_gates(self, weights: Weights, bound: float, lowered: Lowered) -> dict[str, Tensor]:
        """Lower the difference of the gates, by moving each of them half of the way.

        ``p <= max(0, pre_f - pre_i)`` says nothing below a leak of 1/2. There ``f <= bound / (2 - 2 bound)`` and
        ``i >= 1/2`` are enough.
        """
        (forget, enter, candidate), (bias_f, bias_i, other) = _blocks(weights, 3)
        if bound > 0.5:
            apart = None if bias_f is None or bias_i is None else bias_f - bias_i
            rows, shift = lowered(forget - enter, apart, bound)
            half = (rows - (forget - enter)) / 2
            forget, enter = forget + half, enter - half
            if apart is not None and shift is not None and bias_f is not None and bias_i is not None:
                half = (shift - apart) / 2
                bias_f, bias_i = bias_f + half, bias_i - half
        else:
            forget, bias_f = lowered(forget, bias_f, bound / (2 - 2 * bound))
            enter, bias_i = lowered(-enter, None if bias_i is None else -bias_i, 0.5)
            enter, bias_i = -enter, None if bias_i is None else -bias_i
        return _joined((forget, enter, candidate), (bias_f, bias_i, other))

    def _shifted(self, weights: Weights, drive: Interval) -> Interval:
        return super()._shifted(weights, drive.rows(slice(len(weights["weight_ih"]))))

    def leak_interval(self, weights: Weights, drive: Interval) -> Interval:
        """Return the extremes of ``p`` over both gates and their difference."""
        apart = drive.rows(slice(len(weights["weight_ih"]), None))
        bias_f, bias_i, _ = _blocks(weights, 3)[1]
        apart = apart if bias_f is None or bias_i is None else apart.shift(bias_f - bias_i)
        forget, enter, _ = self._shifted(weights, drive).chunk(3)
        return Interval(-_largest(enter, forget, -apart.low), _largest(forget, enter, apart.high))

    def _leak_change(self, weights: Weights, drive: Interval) -> Tensor:
        forget, enter, _ = self._shifted(weights, drive).chunk(3)
        steep = (worst(torch.sigmoid(-gate.low))[:, None] for gate in (forget, enter))
        return sum(
            (slope * rows.abs() for slope, rows in zip(steep, weights["weight_ih"].chunk(3), strict=False)),
            start=torch.zeros_like(weights["weight_ih"].chunk(3)[0]),
        )

    def tube(self, weights: Weights, metric: Metric | None) -> Tube:
        """Return the :class:`~lightning_stable.recurrence.tubes.MinLSTMTube`."""
        return MinLSTMTube(weights, metric)


def _largest(rising: Interval, falling: Interval, apart: Tensor) -> Tensor:
    """``max p`` over ``rising`` and ``falling`` whose difference is at most ``apart``."""
    high, low = rising.high, falling.low
    first = torch.where(apart >= 0, torch.minimum(high, low + apart), high)
    second = torch.where(apart >= 0, low, torch.maximum(low, high - apart))
    return normalized_leak(first, second)


def _blocks(weights: Weights, count: int) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Return rows and biases by gate."""
    bias = weights["bias_ih"].chunk(count) if "bias_ih" in weights else (None,) * count
    return weights["weight_ih"].chunk(count), bias


def _joined(rows: Sequence[Tensor], biases: Sequence[Tensor | None]) -> dict[str, Tensor]:
    bias = [part for part in biases if part is not None]
    return {"weight_ih": torch.cat(list(rows))} | ({"bias_ih": torch.cat(bias)} if bias else {})
