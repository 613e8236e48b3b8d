"""A recurrence on enclosures, as a recurrence: what evaluates windows of the one evaluates windows of the other.

The state is what the tube of the cell carries, the values of the run first. What a layer hands to the next one has the
values, the low ends and the high ends side by side, shape ``(..., 3, size)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.recurrence.around import Around, Ball
from lightning_stable.recurrence.base import Contraction, Recurrence, State, Weights
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.tubes import Metric


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
        return self._tube.begin(tuple(parts))

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
            return self.step_on(inputs, state)
        own = inputs.chunk(self.directions, dim=-1)[-1 if self.direction == "backward" else 0]
        return self._tube.step(Ball(own[..., :-1], own[..., -1:]), state)

    def step_on(self, inputs: Tensor, state: State) -> State:
        """Step on what the layer reads itself: a first layer on inputs, once a window, an upper one on enclosures."""
        return self._tube.step(self._tube.drive(Around(*inputs.unbind(-2)) if self.layer else inputs), state)

    def output(self, state: State) -> Tensor:
        """Return the enclosure of the output, shape ``(..., 3, size)``."""
        output = self._output(state)
        return torch.stack((output.value, output.low, output.high), dim=-2)

    def value(self, state: State) -> State:
        """Return the state of the run alone."""
        parts = self.recurrence.initial_state(self._like[:0, :])
        return state[: len(parts)]

    def spread(self, state: State) -> Tensor:
        """Return a bound on the Euclidean norm of the difference of the outputs, shape ``(...)``."""
        return self._tube.spread(self._output(state), state)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """Return that of the recurrence."""
        return self.recurrence.contraction(weights, drive, norm=norm, state_bound=state_bound)

    def _output(self, state: State) -> Around:
        parts, output = self._tube.arounds(state), self.recurrence.output
        return Around(
            output(tuple(part.value for part in parts)),
            output(tuple(part.low for part in parts)),
            output(tuple(part.high for part in parts)),
        )


def drive(first: Sequence[Enclosed], inputs: Tensor) -> Tensor:
    """Return what inputs add to the gates of the first layers, one direction beside the other."""
    return torch.cat([layer.drive(inputs) for layer in first], dim=-1)
