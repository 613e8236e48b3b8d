"""Windows in which every row makes the same number of steps and waits, outside the sequence, in its first state.

This form takes more steps than :mod:`rows`. In return, nothing in it depends on the length of the sequence, so that an
exported program serves all lengths, and the directions of a bidirectional stack can read each other's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Recurrence, State
from lightning_stable.truncation.exact.stack import Stack, States


def waiting_rows(
    stacks: Sequence[Stack],
    inputs: Tensor,
    window: int,
    starts: Sequence[States],
    lengths: Tensor | None = None,
    masks: Sequence[Tensor] = (),
) -> list[States]:
    """Return the states of every direction at every position, ``time`` rows each.

    Args:
        stacks: The forward direction, or both.
        inputs: Shape ``(time, batch, features)``.
        window: Number of inputs a row sees in each direction, its own position included.
        starts: States before the first input in each direction, one row each.
        lengths: Length of every sequence, shape ``(batch,)``; None if all are equally long.
        masks: Dropout masks between the layers, shape ``(time, batch, features)`` of all directions.
    """
    time = inputs.shape[0]  # `len` would make a number of a symbolic size
    ahead = window - 1 if len(stacks) == 2 else 0
    rows = torch.arange(time, device=inputs.device)[:, None]
    ends = time if lengths is None else lengths

    def placed(values: Tensor) -> list[Tensor]:
        # `F.pad` of torch 2.3 takes no empty batch.
        before, after = (values.new_zeros(count, *values.shape[1:]) for count in (window - 1, ahead))
        padded = torch.cat((before, values, after))
        return [padded[place : place + time] for place in range(window + ahead)]

    positions = [rows - window + 1 + place for place in range(window + ahead)]
    inside = [position >= 0 for position in positions]
    if ahead or lengths is not None:
        inside = [begun & (position < ends) for begun, position in zip(inside, positions, strict=True)]
    meets_end = (rows < window, rows + window > ends - 1)
    return run_places(stacks, placed(inputs), inside, window, starts, meets_end, [placed(mask) for mask in masks])


def run_places(
    stacks: Sequence[Stack],
    inputs: list[Tensor],
    inside: list[Tensor],
    window: int,
    starts: Sequence[States],
    meets_end: Sequence[Tensor],
    masks: Sequence[list[Tensor]] = (),
) -> list[States]:
    """Return the states of every direction in the middle of the windows.

    A window has ``window`` places in one direction and ``2 window - 1`` in two. Every row runs the whole stack over the
    places of its own window: an upper layer sees what the ends of the window do below.

    Args:
        stacks: The forward direction, or both.
        inputs: The inputs of all rows at each place, shape ``(rows, batch, features)``; outside the sequence, anything.
        inside: Which rows are inside the sequence at each place, shape ``(rows, batch)`` or broadcastable.
        window: The middle is place ``window - 1``.
        starts: States before the first input in each direction, one row each.
        meets_end: For each direction, which rows begin at the end of the sequence, from ``starts``; the others begin
            from zero. Shapes as ``inside``.
        masks: Dropout masks between the layers, at each place.
    """
    middle: list[list[State]] = [[] for _ in stacks]
    depths = len(stacks[0].layers)
    for depth in range(depths):
        top = depth == depths - 1
        outputs: list[list[Tensor]] = []
        for direction, stack in enumerate(stacks):
            layer, order = stack.layers[depth], slice(None, None, -1 if direction else 1)
            count = window if top else len(inputs)  # nobody reads the top layer beyond the middle
            start, begins = starts[direction][depth], meets_end[direction]
            states = _scan(layer, inputs[order][:count], inside[order][:count], start, begins)
            middle[direction].append(states[window - 1])
            outputs.append([] if top else [layer.output(state) for state in states[order]])
        if not top:
            inputs = (
                outputs[0] if len(stacks) == 1 else [torch.cat(pair, dim=-1) for pair in zip(*outputs, strict=True)]
            )
            if depth < len(masks):
                inputs = [values * mask for values, mask in zip(inputs, masks[depth], strict=True)]
    return [tuple(states) for states in middle]


def _scan(layer: Recurrence, inputs: list[Tensor], inside: list[Tensor], start: State, begins: Tensor) -> list[State]:
    """States of one directed layer after every place."""
    state = _where(begins, start, layer.initial_state(inputs[0]))
    visited = []
    for values, valid in zip(inputs, inside, strict=True):
        state = _where(valid, layer.step(values, state), state)
        visited.append(state)
    return visited


def _where(condition: Tensor, state: State, other: State) -> State:
    return tuple(torch.where(condition[..., None], one, two) for one, two in zip(state, other, strict=True))
