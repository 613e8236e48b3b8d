"""Copy memory: remember symbols over a long delay."""

from __future__ import annotations

import math

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule, seeded


class CopyMemoryDataModule(GeneratedDataModule):
    """Say the first symbols again, in their order, after a delay that says nothing.

    Inputs are ``copied`` symbols drawn from ``1 .. symbols``, ``delay - 1`` zeros, and ``copied + 1`` times the
    delimiter ``symbols + 1``. Targets are zeros up to and at the first delimiter, then the symbols: an output must
    reach ``delay + copied`` steps back. Without memory of the symbols, the best a model can do is ``baseline``.
    Source: Arjovsky, Shah & Bengio, Unitary Evolution Recurrent Neural Networks (2015), section 4.1, with the sizes of
    Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and Recurrent Networks (2018).

    Batches are pairs ``(inputs, targets)`` of class ids in int64, both of shape ``(batch, delay + 2 * copied)``.
    Sequences and the order of the training batches depend on ``seed`` alone, and the global random state is left as it
    is.

    Args:
        delay: Steps from the last symbol to the first that is to be said again, less one: T of the papers.
        copied: Symbols to remember.
        symbols: Different symbols.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Attributes:
        num_classes: Class ids of inputs and targets: ``symbols + 2``.
        baseline: Cross entropy per step, in nats, of the best predictor that remembers no symbol: certain of the zeros,
            and all symbols alike after that, ``copied * ln(symbols) / (delay + 2 * copied)``.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        *,
        delay: int = 100,
        copied: int = 10,
        symbols: int = 8,
        train_size: int = 10_000,
        valid_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        checks.integer("delay", delay)
        checks.integer("copied", copied)
        checks.integer("symbols", symbols)
        super().__init__(
            train_size=train_size,
            valid_size=valid_size,
            test_size=test_size,
            batch_size=batch_size,
            generator=seeded(seed),
        )
        self.delay = delay
        self.copied = copied
        self.symbols = symbols
        self.num_classes = symbols + 2
        self.baseline = copied * math.log(symbols) / (delay + 2 * copied)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the symbols and lay out inputs and targets around them."""
        remembered = torch.randint(1, self.symbols + 1, (size, self.copied), generator=generator)
        inputs = torch.zeros(size, self.delay + 2 * self.copied, dtype=torch.long)
        targets = torch.zeros_like(inputs)
        inputs[:, : self.copied] = targets[:, -self.copied :] = remembered
        inputs[:, -self.copied - 1 :] = self.symbols + 1
        return inputs, targets
