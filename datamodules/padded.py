"""Sequences of different lengths as one batch: padding, lengths and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_stable import checks

Pair = tuple[Tensor, Tensor]


class PaddedBatch(NamedTuple):
    """Sequences padded at their ends to the longest of them.

    Attributes:
        inputs: Shape ``(batch, time, ...)``.
        targets: Shape ``(batch, time, ...)``, one target per input.
        lengths: Real time steps of each sequence, int64, shape ``(batch,)``. Stays on the CPU, where
            :func:`~torch.nn.utils.rnn.pack_padded_sequence` wants it.
        mask: True at real positions, shape ``(batch, time)``.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    mask: Tensor

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> PaddedBatch:
        """Return the batch with everything but ``lengths`` on the device; Lightning calls this."""
        inputs, targets, mask = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.inputs, self.targets, self.mask)
        )
        return PaddedBatch(inputs, targets, self.lengths, mask)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def pad(pairs: Sequence[Pair], *, target_padding: float = 0.0) -> PaddedBatch:
    """Collate pairs ``(inputs, targets)``, each of shape ``(time, ...)``.

    Args:
        pairs: The sequences of a batch, in the order of its rows.
        target_padding: Value of ``targets`` behind the end of a sequence; inputs are padded with zeros.

    Raises:
        TypeError: If the pairs are no pairs of tensors, or the padding is no number.
        ValueError: If there is no sequence, or one is empty or not as long as its targets.
    """
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not all(map(_is_pair, pairs)):
        raise TypeError(
            f"`pairs` must be a sequence of pairs of tensors, (inputs, targets). Got {checks.shown(pairs)}."
        )
    target_padding = checks.number("target_padding", target_padding)
    sizes = [(len(inputs), len(targets)) for inputs, targets in pairs]
    if not sizes or any(time == 0 or time != targets for time, targets in sizes):
        raise ValueError(
            "`pairs` must hold sequences with one target per input, none empty; check the data set. "
            f"Got these (inputs, targets): {sizes}."
        )
    lengths = torch.tensor([time for time, _ in sizes])
    return PaddedBatch(
        pad_sequence([inputs for inputs, _ in pairs], batch_first=True),
        pad_sequence([targets for _, targets in pairs], batch_first=True, padding_value=target_padding),
        lengths,
        torch.arange(int(lengths.max())) < lengths[:, None],
    )
