"""Windowed evaluation by whichever way is fastest for the cells and the mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_stable.precision import is_autocasting
from lightning_stable.truncation.exact.fused import (
    KEEP_BYTES,
    Step,
    fused_advance_rows,
    fused_kernels,
    fused_step,
    fused_window_rows,
)
from lightning_stable.truncation.exact.kernels import Kernel
from lightning_stable.truncation.exact.rows import advance_rows, window_rows
from lightning_stable.truncation.exact.stack import Stack, States

# Rows computed again together in the backward pass of cells without a kernel.
_BLOCK = 32


def evaluate_rows(
    stack: Stack,
    inputs: Tensor,
    window: int,
    *,
    first: int = 0,
    starts: States | None = None,
    masks: Sequence[Tensor] = (),
    recompute: bool | None = None,
) -> States:
    """Return the states of the rows ``first .. time - 1`` after their windows, see :func:`rows.window_rows`.

    Args:
        stack: One direction of a recurrent module.
        inputs: Shape ``(time, batch, features)``.
        window: Number of inputs a row sees.
        first: First row to evaluate.
        starts: As in :func:`rows.window_rows`.
        masks: As in :func:`rows.window_rows`.
        recompute: Whether to save only the inputs and evaluate once more in the backward pass. That is a little slower,
            and memory does not grow with the window. None decides by the size of what would be saved.
    """
    if torch.compiler.is_compiling():  # an exported program takes batches of any size, so it must not be in blocks
        return window_rows(stack, inputs, window, first=first, starts=starts, masks=masks, block=None)
    kernels = _kernels(stack, inputs)
    if kernels is not None:
        return fused_window_rows(
            stack, kernels, inputs, window, first=first, starts=starts, masks=masks, recompute=recompute
        )
    if recompute is None:
        units = sum(sum(p.shape[0] for p in layer.parameters().values() if p.dim() == 2) for layer in stack.layers)
        saved = (len(inputs) - first) * inputs.shape[1] * min(window, len(inputs)) * units * 3 * inputs.element_size()
        recompute = saved > KEEP_BYTES
    block = _BLOCK if recompute else None
    return window_rows(stack, inputs, window, first=first, starts=starts, masks=masks, block=block)


def advance(stack: Stack, inputs: Tensor, rows: States, masks: Sequence[Tensor] = ()) -> States:
    """Return unfinished windows after more inputs, see :func:`rows.advance_rows`."""
    kernels = None if torch.compiler.is_compiling() else _kernels(stack, inputs)
    if kernels is None or not len(inputs):
        return advance_rows(stack, inputs, rows, masks)
    return fused_advance_rows(stack, kernels, inputs, rows, masks)


def step_of(stack: Stack, inputs: Tensor) -> Step:
    """Return a function that steps many rows, each with the input at its own position, without gradients.

    Returns:
        A function of a position and of the states before it and all later positions; it returns the states after them.
    """
    kernels = _kernels(stack, inputs)
    if kernels is None:
        return lambda first, states: stack.step(inputs[first:], states)
    return fused_step(stack, kernels, inputs)


def _kernels(stack: Stack, inputs: Tensor) -> tuple[Kernel, ...] | None:
    # Under autocast the products round to half precision, and only autograd knows which.
    return None if is_autocasting(inputs.device) else fused_kernels(stack)
