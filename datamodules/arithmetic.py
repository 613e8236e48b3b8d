"""Arithmetic: read a sum in digits and write its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule

PLUS, EQUALS, BLANK = 10, 11, 12


class ArithmeticDataModule(GeneratedDataModule):
    """Read ``12+345=`` digit by digit, then write ``357``.

    Both numbers have ``digits`` digits, drawn uniformly and written from the smallest place to the largest, as one adds
    by hand. Inputs and targets are ids in int64, ``(batch, 3 * digits + 3)``: digits, 10 for plus, 11 for equals, 12
    for blank. Inputs are blank after the equals sign; targets are blank until then and hold the ``digits + 1`` digits
    of the sum after it. Source: the task of Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent
    Neural Networks (2017); the sizes are not theirs.

    Args:
        digits: Digits of each number, at most 17, so that a sum fits 64 bits.
        train_size: Training sequences.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        num_classes: Class ids of inputs and targets, 13.
    """

    num_classes = 13

    def __init__(self, *, digits: int = 3, train_size: int = 50_000, **kwargs: Any) -> None:
        super().__init__(train_size=train_size, **kwargs)
        self.digits = checks.integer("digits", digits, 1, 17)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the numbers and lay out the sums."""
        n = self.digits
        first, second = torch.randint(10**n, (2, size, 1), generator=generator)
        inputs = torch.full((size, 3 * n + 3), BLANK)
        targets = torch.full_like(inputs, BLANK)
        inputs[:, :n], inputs[:, n] = _digits(first, n), PLUS
        inputs[:, n + 1 : 2 * n + 1], inputs[:, 2 * n + 1] = _digits(second, n), EQUALS
        targets[:, 2 * n + 2 :] = _digits(first + second, n + 1)
        return inputs, targets


def _digits(numbers: Tensor, count: int) -> Tensor:
    """Return the digits, the smallest place first, ``(batch, count)``."""
    return numbers // 10 ** torch.arange(count) % 10
