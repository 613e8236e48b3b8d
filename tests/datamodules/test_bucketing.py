from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.datamodules import BucketBatchSampler

LENGTHS = torch.randint(1, 200, (229,), generator=torch.Generator().manual_seed(0)).tolist()


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], dict[str, Any], int, int]:
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=60))
    options = {"bucket": draw(st.booleans()), "shuffle": draw(st.booleans()), "seed": draw(st.integers(0, 2**63 - 1))}
    return lengths, options, draw(st.integers(1, 9)), draw(st.integers(1, 4))


@given(plans(), st.integers(0, 5))
def test_ranks_share_the_sequences_out(plan: tuple[list[int], dict[str, Any], int, int], epoch: int) -> None:
    lengths, options, batch_size, world_size = plan
    ranks = [
        BucketBatchSampler(lengths, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.set_epoch(epoch)
    batches = [list(rank) for rank in ranks]
    steps = -(-len(lengths) // (batch_size * world_size))
    assert {len(rank) for rank in ranks} == {len(own) for own in batches} == {steps}
    assert all(1 <= len(batch) <= batch_size for own in batches for batch in own)
    read = sorted(index for own in batches for batch in own for index in batch)
    assert set(read) == set(range(len(lengths)))
    # Twice only where every rank having a sequence at every step takes more of them than there are.
    assert len(read) == max(len(lengths), len(batches[0]) * world_size)


@given(plans())
def test_batches_of_one_process_are_full(plan: tuple[list[int], dict[str, Any], int, int]) -> None:
    lengths, options, batch_size, _ = plan
    sizes = sorted(map(len, BucketBatchSampler(lengths, batch_size, **options)), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


def test_without_bucket_and_shuffle_the_order_is_kept() -> None:
    assert list(BucketBatchSampler([5, 1, 4, 2, 3], 2, bucket=False, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_bucket_without_shuffle_goes_from_short_to_long() -> None:
    assert list(BucketBatchSampler([5, 1, 4, 2, 1], 2, shuffle=False)) == [[1, 4], [3, 2], [0]]


def padded(sampler: BucketBatchSampler) -> int:
    return sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in sampler)


@pytest.mark.parametrize("world_size", [1, 2])
def test_bucket_saves_padding(world_size: int) -> None:
    def total(bucket: bool) -> int:
        ranks = range(world_size)
        return sum(
            padded(BucketBatchSampler(LENGTHS, 16, bucket=bucket, rank=rank, world_size=world_size)) for rank in ranks
        )

    assert total(True) < 1.2 * sum(LENGTHS) < 1.6 * sum(LENGTHS) < total(False)


def test_ranks_read_similar_lengths_at_the_same_step() -> None:
    ranks = [BucketBatchSampler(LENGTHS, 16, rank=rank, world_size=2) for rank in range(2)]
    for first, second in zip(*ranks, strict=True):
        means = [sum(LENGTHS[index] for index in batch) / len(batch) for batch in (first, second)]
        assert abs(means[0] - means[1]) < 0.15 * max(means)


@pytest.mark.parametrize("bucket", [False, True])
def test_the_order_depends_on_seed_and_epoch_alone(bucket: bool) -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = BucketBatchSampler(LENGTHS, 16, bucket=bucket, seed=seed)
        list(sampler)  # what was read before does not matter
        sampler.set_epoch(epoch)
        return list(sampler)

    state = torch.get_rng_state()
    assert batches(3, 1) == batches(3, 1)
    assert batches(3, 1) != batches(3, 2)
    assert batches(3, 1) != batches(2**40, 1)
    # Other batches, not only the same ones in another order.
    first, second = ({frozenset(batch) for batch in batches(3, epoch)} for epoch in (1, 2))
    assert len(first & second) < 0.2 * len(first)
    assert torch.equal(torch.get_rng_state(), state)


def test_bucketed_batches_are_shuffled() -> None:
    means = [sum(LENGTHS[index] for index in batch) / len(batch) for batch in BucketBatchSampler(LENGTHS, 16)]
    assert means not in (sorted(means), sorted(means, reverse=True))
