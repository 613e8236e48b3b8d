"""Windows of bidirectional modules.

Output ``t`` is that of the whole bidirectional stack run on the inputs ``t - window + 1 .. t + window - 1`` (cut at
the ends of the sequence), from the module's start where the window meets an end and from zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_stable.truncation.exact.evaluate import evaluate_rows
from lightning_stable.truncation.exact.rows import head_rows
from lightning_stable.truncation.exact.stack import Stack, States, concatenate
from lightning_stable.truncation.exact.waiting import waiting_rows


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
    """Return the states of both directions at every position, ``time`` rows each.

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
        ahead, back = waiting_rows(stacks, inputs, window, starts, lengths, masks)
        return ahead, back
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
    """Return the index that turns every sequence around and leaves its padding behind it, shape ``(time, batch)``."""
    time, batch = inputs.shape[:2]
    positions = torch.arange(time, device=inputs.device)[:, None].expand(time, batch)
    last = (time if lengths is None else lengths) - 1
    return torch.where(positions <= last, last - positions, positions)


def reorder(values: Tensor, index: Tensor) -> Tensor:
    """Return the entries of ``values``, shape ``(time, batch, features)``, at the positions of ``index``."""
    return values.gather(0, index[..., None].expand_as(values))
