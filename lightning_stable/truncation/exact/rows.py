"""Windows of any stack of recurrences: the simple form that works through every adapter.

Row ``r`` is the window that ends at input ``r``. At step ``j`` of ``window`` every row takes the input
``r - window + j``, so the inputs of all rows are one slice of the sequence that moves by one per step. Rows that reach
over the beginning join when their first input comes, with the state they start from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_stable.truncation.exact.affine import affine_advance, affine_maps, affine_rows, affine_run
from lightning_stable.truncation.exact.stack import Stack, States, concatenate, take


def window_rows(
    stack: Stack,
    inputs: Tensor,
    window: int,
    *,
    first: int = 0,
    starts: States | None = None,
    masks: Sequence[Tensor] = (),
    block: int | None = None,
) -> States:
    """Return the states of the rows ``first .. time - 1`` after their windows.

    Args:
        stack: One direction of a recurrent module.
        inputs: Shape ``(time, batch, features)``.
        window: Number of inputs a row sees.
        first: First row to evaluate.
        starts: States of the rows ``first .. min(window, time) - 1`` before their first input; rows above start
            from zero. Not needed if ``first >= window``.
        masks: Dropout masks between the layers, shape ``(time, batch, features)`` each: one per position, the same
            in every window.
        block: Number of rows to evaluate at a time. Where gradients are needed, a block saves its inputs only and is
            evaluated once more in the backward pass. None evaluates all rows at once and saves everything.
    """
    time = len(inputs)
    if (maps := affine_maps(stack, inputs)) is not None:
        return ((affine_rows(maps, window, first, None if starts is None else starts[0][0]),),)
    if block is None:
        return _rows(stack, inputs, window, first, time, starts, masks)
    blocks = []
    for low in range(first, time, block):
        high = min(low + block, time)
        own_starts = None if starts is None or low >= window else take(starts, slice(low - first, high - first))
        arguments = (stack, inputs, window, low, high, own_starts, masks)
        if torch.is_grad_enabled():
            blocks.append(checkpoint(_rows, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            blocks.append(_rows(*arguments))
    return concatenate(*blocks)


def _rows(
    stack: Stack, inputs: Tensor, window: int, low: int, high: int, starts: States | None, masks: Sequence[Tensor]
) -> States:
    # Rows window .. high - 1 start from zero with the first step, the others when they meet their first input.
    joined = max(low, min(window, high))
    states = stack.zeros(inputs[: high - joined])
    for step in range(1, window + 1):
        reached = max(low, window - step)
        if reached >= high:
            continue
        if reached < joined and starts is not None:
            states = concatenate(take(starts, slice(reached - low, joined - low)), states)
            joined = reached
        now = slice(reached - window + step, high - window + step)
        states = stack.step(inputs[now], states, [mask[now] for mask in masks])
    return states


def head_rows(stack: Stack, inputs: Tensor, start: States, masks: Sequence[Tensor] = ()) -> States:
    """Return the states after every input of a plain run from ``start`` (one row), ``(time, batch, size)`` per part."""
    if (maps := affine_maps(stack, inputs)) is not None:
        return ((affine_run(maps, start[0][0][0]),),)
    states, visited = start, []
    for position in range(len(inputs)):
        now = slice(position, position + 1)
        states = stack.step(inputs[now], states, [mask[now] for mask in masks])
        visited.append(states)
    return concatenate(*visited)


def advance_rows(stack: Stack, inputs: Tensor, rows: States, masks: Sequence[Tensor] = ()) -> States:
    """Return unfinished windows after more inputs: those begun before, and one more from zero with each input.

    Args:
        stack: One direction of a recurrent module.
        inputs: Shape ``(time, batch, features)``.
        rows: The unfinished windows, the youngest first.
        masks: As in :func:`window_rows`.

    Returns:
        ``time`` more rows than before, the youngest (which has seen the last input only) first.
    """
    if (maps := affine_maps(stack, inputs)) is not None:
        return ((affine_advance(maps, rows[0][0]),),)
    for position in range(len(inputs)):
        rows = concatenate(stack.zeros(inputs[:1]), rows)
        count = rows[0][0].shape[0]
        now = inputs[position].expand(count, *inputs.shape[1:])
        rows = stack.step(now, rows, [mask[position].expand(count, *mask.shape[1:]) for mask in masks])
    return rows
