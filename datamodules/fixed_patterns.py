"""Patterns drawn once and learned by heart: random inputs with random answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.bases import LightningDataModule
from lightning_stable.datamodules.generated import Batch
from lightning_stable.datamodules.seeded import seeded


class Repeated:
    """The same batch a number of times: an epoch of full-batch steps.

    Args:
        batch: Inputs and targets.
        times: Steps of an epoch.
    """

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch = batch
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.times):
            yield self.batch


class FixedPatternsDataModule(LightningDataModule, ABC):
    """Draws a fixed set of random sequences, each with a random answer; a subclass draws the answers.

    The task measures how much a model remembers, so training, validation and test see the same patterns. Inputs are
    -1 or 1, each with probability 1/2, of shape ``(patterns, length, input_size)``; a batch holds all of them. They
    depend on ``seed`` alone, and the global random state is left as it is.

    Args:
        patterns: Sequences.
        length: Time steps of a sequence.
        input_size: Features per time step.
        steps_per_epoch: How often an epoch shows all patterns.
        seed: Seed of everything that is drawn.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
    """

    def __init__(
        self, *, patterns: int = 1000, length: int = 5, input_size: int = 8, steps_per_epoch: int = 100, seed: int = 0
    ) -> None:
        super().__init__()
        self.patterns = checks.integer("patterns", patterns)
        self.length = checks.integer("length", length)
        self.input_size = checks.integer("input_size", input_size)
        self.steps_per_epoch = checks.integer("steps_per_epoch", steps_per_epoch)
        self.seed = checks.seed("seed", seed)
        self._batch: Batch | None = None

    @abstractmethod
    def answers(self, generator: torch.Generator) -> Tensor:
        """Draw the answers, shape ``(patterns, 1)``."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the patterns, once."""
        if self._batch is None:
            generator = seeded(self.seed)
            shape = (self.patterns, self.length, self.input_size)
            inputs = torch.randint(2, shape, generator=generator).float() * 2 - 1
            self._batch = inputs, self.answers(generator)

    def tensors(self) -> Batch:
        """Return all patterns, ``(inputs, targets)``.

        Raises:
            ValueError: If ``setup`` has not run.
        """
        if self._batch is None:
            raise ValueError("The patterns are drawn by `setup()`, which must be called first. Got nothing yet.")
        return self._batch

    def train_dataloader(self) -> Repeated:
        """Return all patterns, ``steps_per_epoch`` times."""
        return Repeated(self.tensors(), self.steps_per_epoch)

    def val_dataloader(self) -> Repeated:
        """Return all patterns, once."""
        return Repeated(self.tensors(), 1)

    def test_dataloader(self) -> Repeated:
        """Return all patterns, once."""
        return Repeated(self.tensors(), 1)
