"""The adding problem: find two marked numbers in a long sequence."""

from __future__ import annotations

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule, seeded


class AddingDataModule(GeneratedDataModule):
    """Sum two marked numbers of a sequence.

    The first channel holds numbers drawn uniformly from [0, 1), the second a one at two steps, drawn from the first and
    from the second half of the sequence, and zeros elsewhere. The target is the sum of the two marked numbers. Source:
    Hochreiter & Schmidhuber, Long Short-Term Memory (1997), experiment 4, in the form of Arjovsky, Shah & Bengio,
    Unitary Evolution Recurrent Neural Networks (2015), section 4.2.

    Batches are pairs ``(inputs, targets)`` in float32, of shape ``(batch, length, 2)`` and ``(batch, 1)``. Sequences
    and the order of the training batches depend on ``seed`` alone, and the global random state is left as it is.

    Args:
        length: Time steps of a sequence, at least 2.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Attributes:
        baseline: Mean squared error of always saying 1, the mean of the targets: their variance, 1/6. The literature
            often quotes 0.1767 instead.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    baseline = 1 / 6

    def __init__(
        self,
        *,
        length: int = 100,
        train_size: int = 50_000,
        valid_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        checks.integer("length", length)
        if length < 2:
            raise ValueError(f"`length` must be at least 2, a step for each marked number. Got {length}.")
        super().__init__(
            train_size=train_size,
            valid_size=valid_size,
            test_size=test_size,
            batch_size=batch_size,
            generator=seeded(seed),
        )
        self.length = length

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw numbers and marks, and sum the numbers that are marked."""
        middle = self.length // 2
        numbers = torch.rand(size, self.length, generator=generator)
        first = torch.randint(middle, (size, 1), generator=generator)
        second = torch.randint(middle, self.length, (size, 1), generator=generator)
        marked = torch.cat([first, second], 1)
        marks = torch.zeros_like(numbers).scatter_(1, marked, 1.0)
        return torch.stack([numbers, marks], 2), numbers.gather(1, marked).sum(1, keepdim=True)
