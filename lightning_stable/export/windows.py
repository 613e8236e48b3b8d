"""The windowed form of a recurrent layer that can be exported: ``window`` steps of all rows, without control flow.

:mod:`lightning_stable.truncation` skips what a row does not need, which depends on the length of the sequence. Here
every row makes ``window`` steps and keeps the state it starts from until its first input comes, so one graph serves
batches of every size and sequences of every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable.recurrence import find_recurrences
from lightning_stable.recurrence.base import State
from lightning_stable.recurrence.forms import original_class
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.stack import Stack, States, stacks_of
from lightning_stable.truncation.truncate import truncate
from lightning_stable.truncation.windowed import Windowed, windowed_class

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass
class Recent:
    """What a layer remembers of a stream; the layer replaces ``inputs`` by those after its step.

    Attributes:
        count: Inputs of each sequence so far, counted up to the window, shape ``(batch,)``.
        inputs: The last ``window`` inputs, the newest last, shape ``(window, batch, features)``.
        used: Whether the layer has made its step.
    """

    count: Tensor
    inputs: Tensor
    used: bool = False


def masked_run(stack: Stack, steps: Sequence[Tensor], begun: Sequence[Tensor], states: States) -> list[States]:
    """States of all rows after every step; a row that has not begun keeps its state.

    Args:
        stack: Layers that step together.
        steps: The inputs of the rows at each step, shape ``(rows, batch, features)``; of rows that have not begun,
            anything.
        begun: Which rows have, shape ``(rows, batch)`` or broadcastable, for each step.
        states: The states before the first step.
    """
    visited = []
    for inputs, valid in zip(steps, begun, strict=True):
        states = select(valid, stack.step(inputs, states), states)
        visited.append(states)
    return visited


def select(condition: Tensor, states: States, others: States) -> States:
    """``states`` where the condition, shape ``(rows, batch)`` or broadcastable, holds, and ``others`` elsewhere."""
    return tuple(
        tuple(torch.where(condition[..., None], one, two) for one, two in zip(layer, other, strict=True))
        for layer, other in zip(states, others, strict=True)
    )


def forward_rows(stack: Stack, steps: Sequence[Tensor], age: Tensor, start: States) -> States:
    """States of rows after their windows.

    Args:
        stack: The forward direction of a recurrent module.
        steps: As in :func:`masked_run`, one for each input of the window.
        age: How many inputs came before the newest of a row, shape ``(rows, batch)`` or broadcastable.
        start: The states before the first input of all, one row; windows that begin later start from zero.
    """
    window = len(steps)
    begun = [age >= window - 1 - step for step in range(window)]
    return masked_run(stack, steps, begun, select(age < window, start, stack.zeros(steps[0])))[-1]


def both_rows(stacks: Sequence[Stack], inputs: Tensor, window: int, starts: Sequence[States]) -> list[States]:
    """States of both directions at every position of ``(time, batch, features)``.

    Every row runs the whole stack over its own ``2 window - 1`` places, as
    :mod:`lightning_stable.truncation.exact.bidirectional` says.
    """
    time = inputs.shape[0]
    position = torch.arange(time, device=inputs.device)[:, None]
    padded = F.pad(inputs, (0, 0, 0, 0, window - 1, window - 1))
    below = [padded[place : place + time] for place in range(2 * window - 1)]
    inside = [(position >= offset) & (position < time + offset) for offset in range(window - 1, -window, -1)]
    meets_end = (position < window, position + window > time - 1)
    middle: list[list[State]] = [[], []]
    for depth in range(len(stacks[0].layers)):
        outputs = []
        for direction, order in enumerate((slice(None), slice(None, None, -1))):
            layer = Stack((stacks[direction].layers[depth],))
            states = select(meets_end[direction], starts[direction][depth : depth + 1], layer.zeros(inputs))
            visited = masked_run(layer, below[order], inside[order], states)
            middle[direction].append(visited[window - 1][0])
            outputs.append([layer.output(states) for states in visited[order]])
        below = [torch.cat(pair, dim=-1) for pair in zip(*outputs, strict=True)]
    return [tuple(states) for states in middle]


class PlainWindows(Windowed):
    """Form of layers that take a whole sequence; with ``recent`` set, of the next step of a stream."""

    recent: Recent | None = None

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """As the module's own ``forward``; the state it returns is that of the last window and carries no others.

        Raises:
            ValueError: If the input is packed, or in a stream not one step in one direction.
        """
        layout, stacks = Layout.of(self, input), stacks_of(self)
        if layout.packed is not None:
            raise ValueError("A recurrent layer that is exported must be given a tensor. Got a PackedSequence.")
        starts = layout.starts(stacks, hx)
        if self.recent is None:
            states = self._whole(stacks, layout.inputs, starts)
        else:
            states = [self._next(stacks, layout.inputs, self.recent, starts)]
        output = torch.cat([stack.output(rows) for stack, rows in zip(stacks, states, strict=True)], dim=-1)
        last = [layout.last(states[0]), *(layout.first(rows) for rows in states[1:])]
        shown = stacks[0].layers[0].state_parts
        parts = [
            torch.stack(layers)
            for layers in zip(*(state for of in zip(*last, strict=True) for state in of), strict=True)
        ]
        state = tuple(part if layout.batched else part.squeeze(1) for part in parts[:shown])
        return _as_given(output, layout), state if len(state) > 1 else state[0]

    def _whole(self, stacks: Sequence[Stack], inputs: Tensor, starts: Sequence[States]) -> list[States]:
        if len(stacks) > 1:
            return both_rows(stacks, inputs, self.window, starts)
        time = inputs.shape[0]
        padded = F.pad(inputs, (0, 0, 0, 0, self.window - 1, 0))
        steps = [padded[step : step + time] for step in range(self.window)]
        return [forward_rows(stacks[0], steps, torch.arange(time, device=inputs.device)[:, None], starts[0])]

    def _next(self, stacks: Sequence[Stack], inputs: Tensor, recent: Recent, starts: Sequence[States]) -> States:
        if len(stacks) > 1 or len(inputs) != 1 or recent.used:
            got = "two directions" if len(stacks) > 1 else "a second call" if recent.used else f"{len(inputs)} inputs"
            raise ValueError(f"In a stream a recurrent layer runs forward and takes one input per step. Got {got}.")
        recent.inputs, recent.used = torch.cat((recent.inputs[1:], inputs)), True
        steps = [recent.inputs[step : step + 1] for step in range(self.window)]
        return forward_rows(stacks[0], steps, recent.count[None], starts[0])


def _as_given(output: Tensor, layout: Layout) -> Tensor:
    if not layout.batched:
        return output.squeeze(1)
    return output.transpose(0, 1) if layout.batch_first else output


def plain_windows(model: ModuleT, window: int) -> ModuleT:
    """A twin as :func:`~lightning_stable.truncate` makes it, in evaluation mode and in the form that can be exported.

    Raises:
        ValueError: If ``window`` is no positive integer, there is no recurrence, or one is a cell: the loop around it
            is the user's own, and cannot be followed for every length.
    """
    for recurrence in find_recurrences(model):
        if not recurrence.takes_sequences:
            raise ValueError(
                "A recurrence that is exported must be a layer that takes a whole sequence. "
                f"Got {recurrence.module_name or 'the module'!r}, a {original_class(recurrence.module).__name__}."
            )
    twin = truncate(model, window).eval()
    for recurrent in recurrent_modules(twin).values():
        recurrent.__class__ = windowed_class(original_class(recurrent), PlainWindows)
    return twin


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The recurrent modules of a model by name, in order."""
    return {recurrence.module_name: recurrence.module for recurrence in find_recurrences(model)}
