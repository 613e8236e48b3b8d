"""A recurrent module as a stack of recurrences, and stepping all of its layers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_stable.recurrence import Recurrence, recurrences_of
from lightning_stable.recurrence.base import State

# One state per layer; every part has shape (rows, batch, size).
States = tuple[State, ...]


@dataclass(frozen=True)
class Stack:
    """One direction of a recurrent module: its recurrences, the lowest layer first.

    Tensors are time first: inputs ``(time, batch, features)``, states ``(rows, batch, size)`` per part. A *row* is a
    window; all layers of a row restart together (joint-state windows), because windowing layer by layer would see
    ``layers * (window - 1) + 1`` inputs.
    """

    layers: tuple[Recurrence, ...]

    def step(self, inputs: Tensor, states: States, masks: Sequence[Tensor] = ()) -> States:
        """Return the states of all rows after one step.

        Args:
            inputs: Shape ``(rows, batch, features)``.
            states: The states before the step.
            masks: Dropout masks between the layers, as the inputs of the upper layers.
        """
        advanced = []
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            state = layer.step(inputs, state)
            advanced.append(state)
            inputs = layer.output(state)
            if index < len(masks):
                inputs = inputs * masks[index]
        return tuple(advanced)

    def zeros(self, inputs: Tensor) -> States:
        """Return zero states for inputs of shape ``(rows, batch, features)``."""
        # Only the leading shape and the dtype of the inputs matter to an initial state.
        return tuple(layer.initial_state(inputs) for layer in self.layers)

    def output_size(self, layer: int) -> int:
        """Return the number of output features of a layer."""
        recurrence = self.layers[layer]
        weight = next(iter(recurrence.parameters().values()))
        return recurrence.output(recurrence.initial_state(weight.new_zeros(1, recurrence.input_size))).shape[-1]

    def output(self, states: States) -> Tensor:
        """Return the output of the top layer."""
        return self.layers[-1].output(states[-1])


def stacks_of(module: nn.Module) -> tuple[Stack, ...]:
    """Return the directions of a recurrent module, forward first.

    Raises:
        ValueError: If the module is not recurrent, or its recurrences do not form layers.
    """
    recurrences = recurrences_of(module)
    directions = list(dict.fromkeys(recurrence.direction for recurrence in recurrences))
    stacks = tuple(Stack(tuple(r for r in recurrences if r.direction == direction)) for direction in directions)
    for stack in stacks:
        if [recurrence.layer for recurrence in stack.layers] != list(range(len(recurrences) // len(stacks))):
            raise ValueError(
                f"The recurrences of a {type(module).__name__} must be one per layer and direction. "
                f"Got {[recurrence.name for recurrence in recurrences]}."
            )
    return stacks


def concatenate(*parts: States) -> States:
    """Join rows."""
    return tuple(
        tuple(torch.cat(tensors) for tensors in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)
    )


def take(states: States, rows: slice | Tensor) -> States:
    """Return some of the rows."""
    return tuple(tuple(part[rows] for part in layer) for layer in states)
