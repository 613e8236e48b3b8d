"""Windowed evaluation of bidirectional modules.

Output ``t`` is that of the whole bidirectional stack run on the inputs ``t - window + 1 .. t + window - 1`` (cut at
the ends of the sequence), from the module's start where the window meets an end and from zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Recurrence, State
from lightning_stable.truncation.exact.evaluate import evaluate_rows
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate


def bidirectional_rows(
    stacks: tuple[Stack, Stack],
    inputs: Tensor,
    window: int,
    starts: tuple[States, States],
    lengths: Tensor | None = None,
    masks: Sequence[Tensor] = (),
    *,
    recompute: bool | None = None,
) -> tuple[States, States]:
    """States of both directions at every position, ``time`` rows each.

    Args:
        stacks: Forward and backward direction.
        inputs: Shape ``(time, batch, features)``.
        window: Number of inputs a row sees in each direction, its own position included.
        starts: States before the first input in each direction, one row each.
        lengths: Length of every sequence, shape ``(batch,)``; None if all are equally long.
        masks: Dropout masks between the layers, shape ``(time, batch, features)`` of both directions.
        recompute: As in :func:`evaluate.evaluate_rows`.
    """
    if len(stacks[0].layers) > 1:
        return _stacked(stacks, inputs, window, starts, lengths, masks)
    forward = _one_way(stacks[0], inputs, window, starts[0], recompute)
    turned = reversal(inputs, lengths)
    backward = _one_way(stacks[1], reorder(inputs, turned), window, starts[1], recompute)
    return forward, tuple(tuple(reorder(part, turned) for part in state) for state in backward)


def _one_way(stack: Stack, inputs: Tensor, window: int, start: States, recompute: bool | None) -> States:
    head = head_rows(stack, inputs[:window], start)
    if len(inputs) <= window:
        return head
    return concatenate(head, evaluate_rows(stack, inputs, window, first=window, recompute=recompute))


def reversal(inputs: Tensor, lengths: Tensor | None) -> Tensor:
    """Index that turns every sequence around and leaves the padding behind it, shape ``(time, batch)``."""
    time, batch = inputs.shape[:2]
    positions = torch.arange(time, device=inputs.device)[:, None].expand(time, batch)
    last = (time if lengths is None else lengths) - 1
    return torch.where(positions <= last, last - positions, positions)


def reorder(values: Tensor, index: Tensor) -> Tensor:
    """Entries of ``values``, shape ``(time, batch, features)``, at the positions of ``index``."""
    return values.gather(0, index[..., None].expand_as(values))


def _stacked(
    stacks: tuple[Stack, Stack],
    inputs: Tensor,
    window: int,
    starts: tuple[States, States],
    lengths: Tensor | None,
    masks: Sequence[Tensor],
) -> tuple[States, States]:
    """Every row runs the whole stack on its own window: an upper layer sees what the ends of the window do below.

    Arrays run over the places in a window: entry ``i`` has all rows at their positions ``row - window + 1 + i``.
    """
    time = len(inputs)
    places = range(2 * window - 1)
    ends = torch.full_like(inputs[0, :, 0], time, dtype=torch.long) if lengths is None else lengths
    rows = torch.arange(time, device=inputs.device)[:, None]
    positions = [rows - window + 1 + place for place in places]
    inside = [(position >= 0) & (position < ends) for position in positions]
    gathered = [position.clamp(0, time - 1).squeeze(1) for position in positions]
    below = [inputs[index] for index in gathered]
    visited: tuple[list[State], list[State]] = ([], [])
    for depth in range(len(stacks[0].layers)):
        top = depth == len(stacks[0].layers) - 1
        outputs: list[list[Tensor]] = []
        for direction, stack in enumerate(stacks):
            layer, start = stack.layers[depth], starts[direction][depth]
            order = list(places) if direction == 0 else list(reversed(places))
            if top:  # nobody reads it beyond the middle
                order = order[:window]
            meets_end = (rows < window) if direction == 0 else (rows + window > ends - 1)
            states = _scan(layer, [below[i] for i in order], [inside[i] for i in order], start, meets_end)
            visited[direction].append(states[window - 1])
            outputs.append([layer.output(state) for state in (states if direction == 0 else states[::-1])])
        if not top:
            below = [torch.cat(pair, dim=-1) for pair in zip(*outputs, strict=True)]
            if depth < len(masks):
                below = [values * masks[depth][index] for values, index in zip(below, gathered, strict=True)]
    return tuple(visited[0]), tuple(visited[1])


def _scan(
    layer: Recurrence, inputs: list[Tensor], inside: list[Tensor], start: State, meets_end: Tensor
) -> list[State]:
    """States after every place; outside the sequence a row waits in the state it starts from."""
    rows = inputs[0].shape[0]
    begin = meets_end[..., None]
    zeros = layer.initial_state(inputs[0])
    state: State = tuple(
        torch.where(begin, given.expand(rows, *given.shape[1:]), zero) for given, zero in zip(start, zeros, strict=True)
    )
    visited = []
    for values, valid in zip(inputs, inside, strict=True):
        stepped = layer.step(values, state)
        state = tuple(torch.where(valid[..., None], new, old) for new, old in zip(stepped, state, strict=True))
        visited.append(state)
    return visited
