import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lightning_stable.datamodules import ColumnStream, lay_out_columns


@st.composite
def layouts(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    """A stream of distinct tokens that fits, columns per process, chunk length, number of processes."""
    batch_size, chunk_length, world_size = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    needed = world_size * batch_size * (chunk_length + 1)
    return torch.arange(draw(st.integers(needed, needed + 60))), batch_size, chunk_length, world_size


@given(st.integers(0, 50), st.integers(1, 8))
def test_columns_are_the_stream_without_the_remainder(tokens: int, columns: int) -> None:
    stream = torch.arange(tokens)
    laid_out = lay_out_columns(stream, columns)
    assert laid_out.shape == (columns, tokens // columns)
    assert torch.equal(laid_out.flatten(), stream[: tokens - tokens % columns])


@given(layouts())
def test_chunks_are_consecutive_and_targets_one_ahead(layout: tuple[torch.Tensor, int, int, int]) -> None:
    stream, batch_size, chunk_length, _ = layout
    chunks = list(ColumnStream(stream, batch_size, chunk_length))
    columns = lay_out_columns(stream, batch_size)
    assert torch.equal(torch.cat([inputs for inputs, _ in chunks], dim=1), columns[:, :-1])
    assert torch.equal(torch.cat([targets for _, targets in chunks], dim=1), columns[:, 1:])
    lengths = [inputs.size(1) for inputs, _ in chunks]
    assert all(length == chunk_length for length in lengths[:-1])
    assert 1 <= lengths[-1] <= chunk_length


@given(layouts())
def test_length_is_the_number_of_chunks_on_every_rank(layout: tuple[torch.Tensor, int, int, int]) -> None:
    stream, batch_size, chunk_length, world_size = layout
    ranks = [
        ColumnStream(stream, batch_size, chunk_length, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {len(list(rank)) for rank in ranks} == {len(ranks[0])}


@given(layouts())
def test_ranks_together_read_every_column_once(layout: tuple[torch.Tensor, int, int, int]) -> None:
    stream, batch_size, chunk_length, world_size = layout
    whole = ColumnStream(stream, world_size * batch_size, chunk_length)
    ranks = [
        ColumnStream(stream, batch_size, chunk_length, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for (inputs, targets), *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(inputs, torch.cat([part for part, _ in parts]))
        assert torch.equal(targets, torch.cat([part for _, part in parts]))


def test_can_be_read_again() -> None:
    stream = ColumnStream(torch.arange(30), 2, 4)
    assert [x.tolist() for x, _ in stream] == [x.tolist() for x, _ in stream]


def test_data_loader_workers_keep_the_order() -> None:
    stream = ColumnStream(torch.arange(61), 2, 4)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert [x.tolist() for x, _ in loader] == [x.tolist() for x, _ in stream]


def test_exactly_one_chunk_is_enough() -> None:
    assert len(ColumnStream(torch.arange(10), 2, 4)) == 1


def test_too_short() -> None:
    with pytest.raises(ValueError, match=r"2 columns of 4 \+ 1 tokens need 10; lower .* Got 9 tokens\."):
        ColumnStream(torch.arange(9), 2, 4)


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"`stream` must be one-dimensional.*Got shape \(2, 3\)"):
        lay_out_columns(torch.zeros(2, 3), 2)


def test_wrong_columns() -> None:
    with pytest.raises(ValueError, match=r"`columns` must be a positive integer\. Got 0"):
        lay_out_columns(torch.arange(4), 0)


def test_goes_on_where_it_was_stopped() -> None:
    stream, again = (ColumnStream(torch.arange(40), 2, 3) for _ in range(2))
    chunks = iter(stream)
    read = [next(chunks) for _ in range(2)]
    again.load_state_dict(stream.state_dict())
    rest = list(again)
    assert len(read) + len(rest) == len(stream)
    assert torch.equal(rest[0][0], list(stream)[2][0])
    assert stream.state_dict() == {"given": 0}  # read to the end: the next epoch starts at the beginning
    assert len(list(again)) == len(stream)


@given(layouts(), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_varied_chunks_are_consecutive_and_alike_on_all_ranks(
    layout: tuple[torch.Tensor, int, int, int], seed: int, epoch: int
) -> None:
    tokens, batch_size, chunk_length, world_size = layout
    tokens = torch.arange(9 * len(tokens))  # chunks of nine times the length
    ranks = [
        ColumnStream(tokens, batch_size, 9 * chunk_length, rank=r, world_size=world_size, vary_length=True, seed=seed)
        for r in range(world_size)
    ]
    for rank in ranks:
        rank.set_epoch(epoch)
    chunks = [list(rank) for rank in ranks]
    lengths = [[inputs.size(1) for inputs, _ in own] for own in chunks]
    assert all(own == lengths[0] for own in lengths)
    assert len(lengths[0]) == len(ranks[0])
    assert min(lengths[0]) >= 1
    reach = 9 * chunk_length // 8
    assert all(abs(length - 9 * chunk_length) <= 2 * reach for length in lengths[0][:-2])
    for rank, own in zip(ranks, chunks, strict=True):
        assert torch.equal(torch.cat([inputs for inputs, _ in own], dim=1), rank.columns[:, :-1])
        assert torch.equal(torch.cat([targets for _, targets in own], dim=1), rank.columns[:, 1:])


def test_varied_lengths_depend_on_seed_and_epoch_alone_and_can_be_resumed() -> None:
    def stream(seed: int, epoch: int) -> ColumnStream:
        made = ColumnStream(torch.arange(4000), 2, 100, vary_length=True, seed=seed)
        made.set_epoch(epoch)
        return made

    def lengths(of: ColumnStream) -> list[int]:
        return [inputs.size(1) for inputs, _ in of]

    state = torch.get_rng_state()
    first = lengths(stream(3, 1))
    assert len(set(first)) > 5
    assert first == lengths(stream(3, 1)) != lengths(stream(3, 2))
    assert first != lengths(stream(5, 1))
    assert torch.equal(torch.get_rng_state(), state)
    resumed = stream(3, 1)
    resumed.load_state_dict({"given": 4})
    assert lengths(resumed) == first[4:]
