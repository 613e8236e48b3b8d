"""A recurrence on enclosures, as a recurrence: what evaluates windows of the one evaluates windows of the other.

The state holds the values of the run, the low ends and the high ends, part by part one after another. What a layer
hands to the next one has them side by side, shape ``(..., 3, size)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.recurrence.around import Around, Ball
from lightning_stable.recurrence.base import Contraction, Recurrence, State, Weights
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.tubes import Arounds, Metric


class Premises(NamedTuple):
    """What a tube starts from: numbers, so that they can be part of an exported program.

    Attributes:
        box: Bounds on the entries of every state that may come before a window, by part.
        metric: The norm that the tube asks for.
    """

    box: tuple[tuple[float, ...], ...]
    metric: Metric | None


class Enclosed(Recurrence):
    """The recurrence of a run, and of intervals around it for all runs from other states.

    A run starts where it is told, the others anywhere in the box. A first layer takes what :func:`drive` makes of
    inputs that all runs share, once for all windows; an upper layer reads the enclosures of the layer below.

    Args:
        recurrence: The recurrence.
        weights: Its weights by role, in the dtype to compute in.
        premises: What is known about the other runs.
        directions: The directions of the module.
    """

    cell = "enclosed"

    def __init__(self, recurrence: Recurrence, weights: Weights, premises: Premises, directions: int = 1) -> None:
        super().__init__(
            recurrence.module, name=recurrence.name, layer=recurrence.layer, direction=recurrence.direction
        )
        self.directions = directions
        self.recurrence, self.premises = recurrence, premises
        self._tube, self._like = recurrence.tube(weights, premises.metric), weights["weight_ih"]

    def enclose(self, state: State) -> State:
        """Return the enclosures of a run that starts from a state, shapes ``(..., units)``."""
        grown = 1 + 2 * torch.finfo(self._like.dtype).eps  # numbers may be rounded down
        parts = []
        for index, value in enumerate(state):
            box = self.premises.box[index] if index < len(self.premises.box) else (0.0,) * value.shape[-1]
            high = (grown * value.new_tensor(box)).expand_as(value)
            parts.append(Around(value, -high, high))
        return _packed(self._tube.begin(tuple(parts)))

    def initial_state(self, inputs: Tensor) -> State:
        """Return the enclosures of a run from zero."""
        return self.enclose(self.recurrence.initial_state(inputs[..., 0, :] if self.layer else inputs))

    def drive(self, inputs: Tensor) -> Tensor:
        """Return what inputs of a first layer, ``(..., input_size)``, add to the gates; a last column is the radius."""
        driven = self._tube.drive(inputs)
        return torch.cat((driven.value, driven.radius), dim=-1)

    def step(self, inputs: Tensor, state: State) -> State:
        """Step the run, and the intervals around it."""
        if self.layer:
            driven = self._tube.drive(Around(*inputs.unbind(-2)))
        else:
            own = inputs.chunk(self.directions, dim=-1)[-1 if self.direction == "backward" else 0]
            driven = Ball(own[..., :-1], own[..., -1:])
        return _packed(self._tube(driven, _unpacked(state)))

    def output(self, state: State) -> Tensor:
        """Return the enclosure of the output, shape ``(..., 3, size)``."""
        return _stacked(self._output(_unpacked(state)))

    def value(self, state: State) -> State:
        """Return the state of the run alone."""
        parts = self.recurrence.initial_state(self._like[:0, :])
        return state[: len(parts)]

    def spread(self, state: State) -> Tensor:
        """Return a bound on the Euclidean norm of the difference of the outputs, shape ``(...)``."""
        parts = _unpacked(state)
        return self._tube.spread(self._output(parts), parts)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return that of the recurrence."""
        return self.recurrence.contraction(weights, drive, norm=norm, state_bound=state_bound)

    def _output(self, parts: Arounds) -> Around:
        output = self.recurrence.output
        return Around(
            output(tuple(part.value for part in parts)),
            output(tuple(part.low for part in parts)),
            output(tuple(part.high for part in parts)),
        )


def drive(first: Sequence[Enclosed], inputs: Tensor) -> Tensor:
    """Return what inputs add to the gates of the first layers, one direction beside the other."""
    return torch.cat([layer.drive(inputs) for layer in first], dim=-1)


def _stacked(values: Around) -> Tensor:
    return torch.stack((values.value, values.low, values.high), dim=-2)


def _packed(parts: Arounds) -> State:
    return (*(part.value for part in parts), *(part.low for part in parts), *(part.high for part in parts))


def _unpacked(state: State) -> Arounds:
    count = len(state) // 3
    return tuple(Around(state[index], state[count + index], state[2 * count + index]) for index in range(count))
