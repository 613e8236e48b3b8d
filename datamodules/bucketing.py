"""Which sequences make up a batch: shuffled, dealt out to devices, and optionally put beside others of their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice, pairwise

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_stable import checks
from lightning_stable.datamodules.seeded import seeded

# Before sorting, the lengths are multiplied by random factors from 1 to this: batches that change with the epoch.
SPREAD = 1.1


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of indices; with ``bucket`` those of a batch have similar lengths, which saves padding.

    Every process makes the same plan for all of them and reads its own share: the same number of batches on each,
    at every step of similar length, and every index exactly once over all of them. Only where there are fewer indices
    than that takes (fewer than processes, or ``batch_size=1`` and a number that does not divide) some come twice. In a
    single process the batches are full but for the last one in the plan.

    The plan depends on the lengths, the seed and the epoch alone.

    Args:
        lengths: Length of each sequence.
        batch_size: Sequences per batch and process.
        bucket: Put sequences of similar length together. Without ``shuffle`` they come from short to long.
        shuffle: Take a new order in each epoch.
        seed: Seed of the order.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        bucket: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(lengths, Sequence) or isinstance(lengths, str):
            raise TypeError(f"`lengths` must be a sequence of integers. Got {checks.shown(lengths)}.")
        if not lengths:
            raise ValueError(f"`lengths` must hold at least one sequence. Got {lengths!r}.")
        for length in lengths:
            checks.integer("lengths", length, 0)
        self.lengths = torch.as_tensor(lengths, dtype=torch.float64)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.bucket = checks.boolean("bucket", bucket)
        self.shuffle = checks.boolean("shuffle", shuffle)
        self.seed = checks.seed("seed", seed)
        self.world_size = checks.integer("world_size", world_size)
        self.rank = checks.integer("rank", rank, 0, self.world_size - 1)
        self.epoch = 0

    @property
    def sampler(self) -> BucketBatchSampler:
        """The sampler itself: Lightning calls the ``set_epoch`` of what a batch sampler has under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        generator = seeded(self.seed, self.epoch)
        order: list[int] = self._order(generator).tolist()
        steps = len(self)
        order = list(islice(cycle(order), max(len(order), steps * self.world_size)))
        # Full steps first, but to every later one as many indices are left as there are processes.
        last = (len(order) - (steps - index) * self.world_size for index in range(steps + 1))
        cuts = [min(index * self.batch_size * self.world_size, limit) for index, limit in enumerate(last)]
        batches = [order[start:stop] for start, stop in pairwise(cuts)]
        if self.bucket and self.shuffle:
            batches = [batches[index] for index in torch.randperm(steps, generator=generator).tolist()]
        return (batch[self.rank :: self.world_size] for batch in batches)

    def _order(self, generator: torch.Generator) -> Tensor:
        count = len(self.lengths)
        if not self.shuffle:
            return self.lengths.argsort(stable=True) if self.bucket else torch.arange(count)
        if not self.bucket:
            return torch.randperm(count, generator=generator)
        spread = torch.rand(count, generator=generator, dtype=torch.float64) * (SPREAD - 1) + 1
        return (self.lengths * spread).argsort(stable=True)
