"""Data that is drawn at random: what the data modules of generated sequences share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable import checks
from lightning_stable.bases import LightningDataModule
from lightning_stable.datamodules.seeded import seeded
from lightning_stable.datamodules.splits import SPLITS, Split, of_split

Batch = tuple[Tensor, Tensor]


class Rows(TensorDataset):
    """A TensorDataset whose batches are taken in one piece, not put together from single sequences."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Return the sequences of a batch; ``DataLoader`` asks for them in this form first."""
        return [tensor[indices] for tensor in self.tensors]


def whole(batch: list[Tensor]) -> list[Tensor]:
    """Collate what is a batch already."""
    return batch


class GeneratedDataModule(LightningDataModule, ABC):
    """Draws pairs ``(inputs, targets)`` at random, in memory; a subclass says how.

    Sequences and the order of the training batches depend on ``seed`` alone. The global random state is left as it is,
    and no split changes with the size of another.

    Args:
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
    """

    def __init__(
        self,
        *,
        train_size: int = 10_000,
        valid_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sizes: dict[Split, int] = {
            "train": checks.integer("train_size", train_size),
            "valid": checks.integer("valid_size", valid_size),
            "test": checks.integer("test_size", test_size),
        }
        self.batch_size = checks.integer("batch_size", batch_size)
        self.seed = checks.seed("seed", seed)
        generator = seeded(self.seed)
        self.draw_shared(generator)
        seeds: list[int] = torch.randint(2**62, (len(SPLITS) + 1,), generator=generator).tolist()
        *split_seeds, self._shuffle_seed = seeds
        self._split_seeds = dict(zip(SPLITS, split_seeds, strict=True))
        self._splits: dict[Split, Rows] = {}

    def draw_shared(self, generator: torch.Generator) -> None:
        """Draw what all splits have in common, before the splits are drawn; nothing, unless a subclass says so."""

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
        """Return all sequences of a split, ``(inputs, targets)``.

        Raises:
            ValueError: If there is no such split or ``setup`` has not run.
        """
        inputs, targets = self._rows(split).tensors
        return inputs, targets

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches of the training split."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the batches of the validation split."""
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the batches of the test split."""
        return self._loader("test")

    def _rows(self, split: Split) -> Rows:
        return of_split(self._splits, split, "The sequences are drawn")

    def _loader(self, split: Split, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        # Without its own generator even a loader that does not shuffle draws from the global random state.
        generator = seeded(self._shuffle_seed)
        return DataLoader(self._rows(split), self.batch_size, shuffle=shuffle, generator=generator, collate_fn=whole)
