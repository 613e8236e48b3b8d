"""The adding problem: find two marked numbers in a long sequence."""

from __future__ import annotations

from typing import Any

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule


class AddingDataModule(GeneratedDataModule):
    """Sum two marked numbers of a sequence.

    The first channel holds numbers drawn uniformly from [0, 1). The second holds a one at two steps, drawn from the
    first and from the second half of the sequence, and zeros elsewhere. The target is the sum of the two marked
    numbers. Source: Hochreiter & Schmidhuber, Long Short-Term Memory (1997), experiment 4, in the form of Arjovsky,
    Shah & Bengio, Unitary Evolution Recurrent Neural Networks (2015), section 4.2.

    Batches are pairs ``(inputs, targets)`` in float32, of shape ``(batch, length, 2)`` and ``(batch, 1)``.

    Args:
        length: Time steps of a sequence, at least 2.
        train_size: Training sequences.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        baseline: Mean squared error of always saying 1, the mean of the targets: their variance, 1/6. The literature
            often quotes 0.1767 instead.
    """

    baseline = 1 / 6

    def __init__(self, *, length: int = 100, train_size: int = 50_000, **kwargs: Any) -> None:
        super().__init__(train_size=train_size, **kwargs)
        self.length = checks.integer("length", length, 2)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw numbers and marks, and sum the numbers that are marked."""
        middle = self.length // 2
        numbers = torch.rand(size, self.length, generator=generator)
        first = torch.randint(middle, (size, 1), generator=generator)
        second = torch.randint(middle, self.length, (size, 1), generator=generator)
        marked = torch.cat([first, second], 1)
        marks = torch.zeros_like(numbers).scatter_(1, marked, 1.0)
        return torch.stack([numbers, marks], 2), numbers.gather(1, marked).sum(1, keepdim=True)
