"""Which sequences make up a batch: shuffled, dealt out to devices, and optionally put beside others of their length."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice, pairwise

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_stable import checks

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
        lengths: length of each sequence.
        batch_size: sequences per batch and process.
        bucket: put sequences of similar length together. Without ``shuffle`` they come from short to long.
        shuffle: a new order in each epoch.
        seed: seed of the order.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: naming the argument that has a wrong type or range.
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
        checks.integer("batch_size", batch_size)
        checks.integer("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must lie in 0 .. world_size - 1 = {world_size - 1}. Got {rank}.")
        if len(lengths) == 0:
            raise ValueError("`lengths` must hold at least one sequence. Got none.")
        self.lengths = torch.as_tensor(lengths, dtype=torch.float64)
        self.batch_size = batch_size
        self.bucket = bucket
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> "BucketBatchSampler":
        """Itself: Lightning calls the ``set_epoch`` of what a batch sampler has under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0; Lightning does so before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
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
