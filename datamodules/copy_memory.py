"""Copy memory: remember symbols over a long delay."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule


class CopyMemoryDataModule(GeneratedDataModule):
    """Repeat the first symbols, in their order, after a delay without information.

    Inputs are ``copied`` symbols drawn from ``1 .. symbols``, ``delay - 1`` zeros, and ``copied + 1`` times the
    delimiter ``symbols + 1``. Targets are zeros up to and at the first delimiter, then the symbols: an output must
    reach ``delay + copied`` steps back. Without memory of the symbols, the best a model can do is ``baseline``.
    Source: Arjovsky, Shah & Bengio, Unitary Evolution Recurrent Neural Networks (2015), section 4.1, with the sizes of
    Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and Recurrent Networks (2018).

    Batches are pairs ``(inputs, targets)`` of class ids in int64, both of shape ``(batch, delay + 2 * copied)``.

    Args:
        delay: Steps from the last symbol to the first that is to be repeated, less one: T of the papers.
        copied: Symbols to remember.
        symbols: Different symbols.
        kwargs: The arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        num_classes: Class ids of inputs and targets, ``symbols + 2``.
        baseline: Cross entropy per step, in nats, of the best predictor that remembers no symbol. It is certain of the
            zeros and gives all symbols the same probability: ``copied * ln(symbols) / (delay + 2 * copied)``.
    """

    def __init__(self, *, delay: int = 100, copied: int = 10, symbols: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delay = checks.integer("delay", delay)
        self.copied = checks.integer("copied", copied)
        self.symbols = checks.integer("symbols", symbols)
        self.num_classes = self.symbols + 2
        self.baseline = self.copied * math.log(self.symbols) / (self.delay + 2 * self.copied)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the symbols and lay out inputs and targets around them."""
        remembered = torch.randint(1, self.symbols + 1, (size, self.copied), generator=generator)
        inputs = torch.zeros(size, self.delay + 2 * self.copied, dtype=torch.long)
        targets = torch.zeros_like(inputs)
        inputs[:, : self.copied] = targets[:, -self.copied :] = remembered
        inputs[:, -self.copied - 1 :] = self.symbols + 1
        return inputs, targets
