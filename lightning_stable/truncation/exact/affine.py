"""Windows of cells with ``h' = a(x) h + b(x)``: no more work than for the recurrence, whatever the window.

A sequence is cut into blocks of one window. The window that ends inside a block is the end of the block before and the
beginning of this one; both are compositions of affine maps, found for all positions by one scan back and one forward
(as a queue is kept with two stacks). Nothing is subtracted, so a window is as exact as a run. It equals
``h_t - (product of the last k leaks) h_(t-k)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.linalg import composed, linear_scan
from lightning_stable.truncation.exact.stack import Stack

Affine = tuple[Tensor, Tensor]


def affine_run(maps: Affine, start: Tensor) -> Tensor:
    """Return the states after every input of a run from ``start``, shape ``(time, batch, size)``."""
    return linear_scan(*maps, start)


def affine_rows(maps: Affine, window: int, first: int = 0, starts: Tensor | None = None) -> Tensor:
    """Return what :func:`rows.window_rows` does, for the state of one layer.

    Args:
        maps: ``a`` and ``b`` at every position, shape ``(time, batch, size)``.
        window: Number of inputs a row sees.
        first: First row to return.
        starts: States of the rows ``first .. min(window, time) - 1`` before their first input; zeros if None.
    """
    leaks, terms = maps
    time, short = len(leaks), max(first, min(window, len(leaks)))
    parts = []
    if first < short:
        scales, states = composed(leaks[:short], terms[:short])
        begun = states[first:]
        parts.append(begun if starts is None else torch.addcmul(begun, scales[first:], starts))
    if short < time:
        # The windows that end at `low` or later: from the first position of the oldest, in whole blocks.
        low = short - window + 1
        blocks = -(-(time - low) // window)
        padding = low + blocks * window - time
        leaks, terms = (
            torch.cat((values[low:], values.new_full((padding, *values.shape[1:]), fill)))
            .view(blocks, window, *values.shape[1:])
            .transpose(0, 1)
            for values, fill in ((leaks, 1.0), (terms, 0.0))
        )
        zero = torch.zeros_like(terms[0])
        scales, begun = composed(leaks, terms)
        # What the suffix that begins at a position leaves at the end of its block.
        ends = _suffixes(leaks, terms)
        before = torch.cat((zero[None, :1].expand(window - 1, -1, *zero.shape[1:]), ends[1:, :-1]), 1)
        whole = torch.cat((torch.addcmul(begun[:-1], scales[:-1], before), begun[-1:]))
        parts.append(whole.transpose(0, 1).flatten(0, 1)[window - 1 : window - 1 + time - short])
    return torch.cat(parts)


def affine_advance(maps: Affine, rows: Tensor) -> Tensor:
    """Return what :func:`rows.advance_rows` does, for the state of one layer."""
    if not len(maps[0]):
        return rows
    scales, states = composed(*maps)
    return torch.cat((_suffixes(*maps).flip(0), torch.addcmul(states[-1], scales[-1], rows)))


def affine_maps(stack: Stack, inputs: Tensor) -> Affine | None:
    """Return the maps at every input, shapes ``(time, batch, size)``; None for a stack whose state map is another."""
    maps = stack.layers[0].affine(inputs) if len(stack.layers) == 1 else None
    if maps is None:
        return None
    # Under autocast states keep the dtype of the inputs.
    leaks, terms = (part.to(torch.promote_types(part.dtype, inputs.dtype)) for part in maps)
    return leaks, terms


def _suffixes(leaks: Tensor, terms: Tensor) -> Tensor:
    """Return what the inputs from a position to the last make of zero: ``sum over u of b_u (product after u)``."""
    one = torch.ones_like(leaks[:1])
    after = linear_scan(torch.cat((leaks[1:], one)), torch.zeros_like(terms), one[0], reverse=True)
    return (terms * after).flip(0).cumsum(0).flip(0)
