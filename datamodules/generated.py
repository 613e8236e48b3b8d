"""Data that is drawn at random: what the data modules of generated sequences share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import SPLITS, Split

Batch = tuple[Tensor, Tensor]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own, so that the global random state is left as it is.

    Raises:
        ValueError: If ``seed`` cannot seed one.
    """
    checks.seed("seed", seed)
    return torch.Generator().manual_seed(seed)


class Rows(TensorDataset):
    """A TensorDataset whose batches are taken in one piece, not put together from single sequences."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """The sequences of a batch; ``DataLoader`` asks for them in this form first."""
        return [tensor[indices] for tensor in self.tensors]


def whole(batch: list[Tensor]) -> list[Tensor]:
    """Collate what is a batch already."""
    return batch


class GeneratedDataModule(LightningDataModule, ABC):
    """Pairs ``(inputs, targets)`` drawn at random, in memory; a subclass says how they are drawn.

    Args:
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        generator: Source of the seeds of the splits and of the order of training.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self, *, train_size: int, valid_size: int, test_size: int, batch_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        checks.integer("train_size", train_size)
        checks.integer("valid_size", valid_size)
        checks.integer("test_size", test_size)
        checks.integer("batch_size", batch_size)
        self.sizes: dict[Split, int] = {"train": train_size, "valid": valid_size, "test": test_size}
        self.batch_size = batch_size
        # A seed of its own for each, so that no split changes with the size of another.
        seeds: list[int] = torch.randint(2**62, (len(SPLITS) + 1,), generator=generator).tolist()
        *split_seeds, self._shuffle_seed = seeds
        self._split_seeds = dict(zip(SPLITS, split_seeds, strict=True))
        self._splits: dict[Split, Rows] = {}

    @abstractmethod
    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw ``size`` sequences, ``(inputs, targets)``."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the sequences of all splits, once."""
        if not self._splits:
            self._splits = {
                split: Rows(*self.draw(self.sizes[split], seeded(self._split_seeds[split]))) for split in SPLITS
            }

    def tensors(self, split: Split) -> Batch:
        """All sequences of a split, ``(inputs, targets)``.

        Raises:
            ValueError: If there is no such split or ``setup`` has not run.
        """
        inputs, targets = self._dataset(split).tensors
        return inputs, targets

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of the training split."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the validation split."""
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test split."""
        return self._loader("test")

    def _dataset(self, split: Split) -> Rows:
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Got {split!r}.")
        if not self._splits:
            raise ValueError("The sequences are drawn by `setup()`; call that first. Got no sequences yet.")
        return self._splits[split]

    def _loader(self, split: Split, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        # Without a generator of its own even a loader that does not shuffle draws from the global random state.
        generator = seeded(self._shuffle_seed)
        return DataLoader(self._dataset(split), self.batch_size, shuffle=shuffle, generator=generator, collate_fn=whole)
