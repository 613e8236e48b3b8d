"""Sequences of different lengths in three splits: what the data modules of padded batches share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice

from lightning.pytorch import LightningDataModule

from lightning_stable import checks
from lightning_stable.datamodules.bucketing import BucketBatchSampler
from lightning_stable.datamodules.language_modeling import SPLITS, Split
from lightning_stable.datamodules.padded import PaddedBatch, Pair, pad


class PaddedLoader:
    """Padded batches of sequences that lie in memory, so there is nothing for the workers of a DataLoader to do.

    Being no DataLoader, it is left by Lightning without a DistributedSampler: the batch sampler deals the sequences
    out. A run that was stopped inside an epoch goes on with the batch after the last one it saw.

    Args:
        pairs: all sequences, ``(inputs, targets)`` each.
        batch_sampler: the indices of each batch.
        target_padding: stands in ``targets`` where there is none.
    """

    def __init__(
        self, pairs: Sequence[Pair], batch_sampler: BucketBatchSampler, *, target_padding: float = 0.0
    ) -> None:
        self.pairs = pairs
        self.batch_sampler = batch_sampler
        self.target_padding = target_padding
        self._given = self._first = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[PaddedBatch]:
        first, self._first = self._first, 0
        return self._batches(first)

    def _batches(self, first: int) -> Iterator[PaddedBatch]:
        # The sampler is asked no sooner than the first batch is: Lightning makes the iterator before it sets the epoch.
        self._given = first
        for indices in islice(self.batch_sampler, first, None):
            self._given += 1
            yield pad([self.pairs[index] for index in indices], target_padding=self.target_padding)

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were read: Lightning asks for it when it makes a checkpoint."""
        return {"given": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch begin there, where a run was stopped."""
        self._first = state["given"]


class SequenceDataModule(LightningDataModule, ABC):
    """Padded batches of labelled sequences; a subclass says what the sequences of a split are.

    Every loader is a :class:`PaddedLoader` of :class:`~lightning_stable.datamodules.padded.PaddedBatch`. Under a
    distributed strategy the devices share every split evenly, no sequence is read twice (see
    :class:`~lightning_stable.datamodules.bucketing.BucketBatchSampler`), and sums over all devices are exact.

    Args:
        batch_size: sequences per batch and device in training.
        eval_batch_size: sequences per batch and device in validation and test; as ``batch_size`` if None.
        bucket: put sequences of similar length into a batch. Evaluation then runs from short to long, instead of in
            the order of the files.
        seed: seed of the order of training.

    Raises:
        ValueError: naming the argument that has a wrong type or range.
    """

    target_padding = 0.0

    def __init__(
        self, *, batch_size: int = 32, eval_batch_size: int | None = None, bucket: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        checks.integer("batch_size", batch_size)
        checks.integer("eval_batch_size", eval_batch_size)
        checks.boolean("bucket", bucket)
        checks.seed("seed", seed)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.bucket = bucket
        self.seed = seed
        self._splits: dict[Split, list[Pair]] = {}

    @abstractmethod
    def read(self) -> dict[Split, list[Pair]]:
        """Return the sequences ``(inputs, targets)`` of all splits."""

    def setup(self, stage: str | None = None) -> None:
        """Read all splits, once.

        Raises:
            ValueError: if a file is missing, damaged or without sequences.
        """
        if not self._splits:
            self._splits = self.read()

    def sequences(self, split: Split) -> list[Pair]:
        """Return the sequences ``(inputs, targets)`` of a split, in the order of its file.

        Raises:
            ValueError: if there is no such split or ``setup`` has not run.
        """
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Got {split!r}.")
        if not self._splits:
            raise ValueError("The sequences are read by `setup()`; call that first. Got no sequences yet.")
        return self._splits[split]

    @property
    def sizes(self) -> dict[Split, int]:
        """Number of sequences by split."""
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
        batch_sampler = BucketBatchSampler(
            [len(inputs) for inputs, _ in pairs],
            batch_size,
            bucket=self.bucket,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return PaddedLoader(pairs, batch_sampler, target_padding=self.target_padding)
