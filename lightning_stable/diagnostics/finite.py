"""Measurements are refused on numbers that are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_stable import checks
from lightning_stable.recurrence.base import Recurrence
from lightning_stable.stability.certify import check_finite


def checked_inputs(inputs: Any) -> Tensor | PackedSequence:
    """Return inputs as they are.

    Raises:
        TypeError: If they are neither a tensor nor a PackedSequence.
        ValueError: If they are not dense, or no real numbers.
    """
    if isinstance(inputs, PackedSequence):
        checks.real_tensor("inputs", inputs.data)
        return inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`inputs` must be a tensor or a PackedSequence. Got {checks.shown(inputs)}.")
    return checks.real_tensor("inputs", inputs)


def check_run(recurrences: Sequence[Recurrence], inputs: Tensor, *states: Tensor) -> None:
    """Check what a measurement reads: weights, inputs and start states; NaN in any would be NaN in all results.

    Raises:
        ValueError: If one is complex, NaN or infinite, with its name, or there are no inputs.
    """
    if not inputs.numel():
        raise ValueError(f"`inputs` must hold a sequence, with at least one step. Got shape {tuple(inputs.shape)}.")
    check_finite(recurrences)
    dtype = next(iter(recurrences[0].parameters().values())).dtype
    for name, values in (("inputs", inputs), *(("state", state) for state in states)):
        if values.is_complex():
            raise ValueError(f"`{name}` must be real numbers. Got {values.dtype}.")
        if not torch.isfinite(values.to(dtype)).all():
            raise ValueError(f"`{name}` must be finite in {dtype}, as the weights. Got NaN or Inf.")
