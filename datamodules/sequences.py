"""Sequences of different lengths in three splits: what the data modules of padded batches share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice

from lightning_stable import checks
from lightning_stable.bases import LightningDataModule
from lightning_stable.datamodules.bucketing import BucketBatchSampler
from lightning_stable.datamodules.padded import PaddedBatch, Pair, pad
from lightning_stable.datamodules.processes import processes
from lightning_stable.datamodules.resumable import Resumable
from lightning_stable.datamodules.splits import SPLITS, Split, of_split


class PaddedLoader(Resumable[PaddedBatch]):
    """Padded batches of sequences that lie in memory, so there is nothing for the workers of a DataLoader to do.

    It is no DataLoader, so Lightning gives it no DistributedSampler: the batch sampler deals the sequences out.

    Args:
        pairs: All sequences, ``(inputs, targets)`` each.
        batch_sampler: The indices of each batch.
        target_padding: Value of ``targets`` behind the end of a sequence.
    """

    def __init__(
        self, pairs: Sequence[Pair], batch_sampler: BucketBatchSampler, *, target_padding: float = 0.0
    ) -> None:
        self.pairs = pairs
        self.batch_sampler = batch_sampler
        self.target_padding = target_padding

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def batches(self, first: int) -> Iterator[PaddedBatch]:
        """Yield the batches of an epoch from number ``first`` on."""
        for indices in islice(self.batch_sampler, first, None):
            yield pad([self.pairs[index] for index in indices], target_padding=self.target_padding)


class SequenceDataModule(LightningDataModule, ABC):
    """Padded batches of labelled sequences; a subclass says what the sequences of a split are.

    Every loader is a :class:`PaddedLoader` of :class:`~lightning_stable.datamodules.padded.PaddedBatch`. Under a
    distributed strategy the devices share every split evenly, no sequence is read twice (see
    :class:`~lightning_stable.datamodules.bucketing.BucketBatchSampler`), and sums over all devices are exact.

    Args:
        batch_size: Sequences per batch and device in training.
        eval_batch_size: Sequences per batch and device in validation and test; as ``batch_size`` if None.
        bucket: Put sequences of similar length into a batch. Evaluation then runs from short to long, instead of in
            the order of the files.
        seed: Seed of the order of training.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range; in ``setup``, if a file is missing,
            damaged or without sequences.
    """

    target_padding = 0.0

    def __init__(
        self, *, batch_size: int = 32, eval_batch_size: int | None = None, bucket: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = checks.integer("batch_size", batch_size)
        self.eval_batch_size = (
            self.batch_size if eval_batch_size is None else checks.integer("eval_batch_size", eval_batch_size)
        )
        self.bucket = checks.boolean("bucket", bucket)
        self.seed = checks.seed("seed", seed)
        self._splits: dict[Split, list[Pair]] = {}

    @abstractmethod
    def read(self) -> dict[Split, list[Pair]]:
        """Return the sequences ``(inputs, targets)`` of all splits."""

    def setup(self, stage: str | None = None) -> None:
        """Read all splits, once.

        Raises:
            ValueError: If a file is missing, damaged or without sequences.
        """
        if not self._splits:
            self._splits = self.read()

    def sequences(self, split: Split) -> list[Pair]:
        """Return the sequences ``(inputs, targets)`` of a split, in the order of its file.

        Raises:
            ValueError: If there is no such split or ``setup`` has not run.
        """
        return of_split(self._splits, split, "The sequences are read")

    @property
    def sizes(self) -> dict[Split, int]:
        """The number of sequences by split."""
        return {split: len(self.sequences(split)) for split in SPLITS}

    def train_dataloader(self) -> PaddedLoader:
        """Return the batches of the training split, in a new order every epoch."""
        # Lightning can turn off the shuffling of a DataLoader alone, and to overfit means the same batches every epoch.
        return self._loader("train", self.batch_size, shuffle=not getattr(self.trainer, "overfit_batches", 0))

    def val_dataloader(self) -> PaddedLoader:
        """Return the batches of the validation split."""
        return self._loader("valid", self.eval_batch_size)

    def test_dataloader(self) -> PaddedLoader:
        """Return the batches of the test split."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, split: Split, batch_size: int, *, shuffle: bool = False) -> PaddedLoader:
        pairs = self.sequences(split)
        rank, world_size = processes(self)
        batch_sampler = BucketBatchSampler(
            [len(inputs) for inputs, _ in pairs],
            batch_size,
            bucket=self.bucket,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        return PaddedLoader(pairs, batch_sampler, target_padding=self.target_padding)
