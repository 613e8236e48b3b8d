from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader

from lightning_stable.datamodules import PaddedBatch, pad
from tests.helpers import on_gpu


def pairs(*lengths: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((n, 3), float(n)), torch.full((n,), n)) for n in lengths]


def test_padding_lengths_and_mask() -> None:
    inputs, targets, lengths, mask = batch = pad(pairs(2, 4, 1), target_padding=-100)
    assert isinstance(batch, PaddedBatch)
    assert inputs.shape == (3, 4, 3)
    assert targets.tolist() == [[2, 2, -100, -100], [4, 4, 4, 4], [1, -100, -100, -100]]
    assert targets.dtype == lengths.dtype == torch.int64
    assert lengths.tolist() == [2, 4, 1] == mask.sum(1).tolist()
    assert mask.dtype == torch.bool
    assert mask.tolist() == (targets != -100).tolist()
    assert inputs[..., 0].tolist() == [[2, 2, 0, 0], [4, 4, 4, 4], [1, 0, 0, 0]]


def test_padding_of_targets_is_zero_by_default() -> None:
    assert pad(pairs(1, 2)).targets.tolist() == [[1, 0], [2, 2]]


def test_lightning_moves_all_but_the_lengths() -> None:
    for moved in (move_data_to_device(pad(pairs(2, 3)), torch.device("meta")), pad(pairs(2, 3)).to("meta")):
        assert isinstance(moved, PaddedBatch)
        assert {tensor.device.type for tensor in (moved.inputs, moved.targets, moved.mask)} == {"meta"}
        assert moved.lengths.device.type == "cpu"
        assert moved.lengths.tolist() == [2, 3]
    assert isinstance(move_data_to_device([pad(pairs(2))], torch.device("meta"))[0], PaddedBatch)


def test_lightning_reads_the_batch_size() -> None:
    assert extract_batch_size(pad(pairs(2, 3, 5))) == 3


def test_lengths_are_what_packing_wants() -> None:
    batch = pad(pairs(2, 5, 3))
    packed: Any = pack_padded_sequence(batch.inputs, batch.lengths, batch_first=True, enforce_sorted=False)
    assert nn.RNN(3, 2)(packed)[0].data.shape == (10, 2)


def test_collates_for_a_data_loader_of_torch() -> None:
    loader: Any = DataLoader(pairs(1, 2, 3), 2, collate_fn=pad)  # type: ignore[arg-type]
    assert [batch.lengths.tolist() for batch in loader] == [[1, 2], [3]]


@on_gpu
def test_on_a_gpu() -> None:
    batch = move_data_to_device(pad(pairs(2, 3)), torch.device("cuda"))
    assert batch.inputs.is_cuda
    assert batch.mask.is_cuda
    assert not batch.lengths.is_cuda
    loader: Any = DataLoader(pairs(1, 2, 3), 2, collate_fn=pad, pin_memory=True)  # type: ignore[arg-type]
    assert all(isinstance(batch, PaddedBatch) and batch.inputs.is_pinned() for batch in loader)


@pytest.mark.parametrize("wrong", [[], pairs(2, 0), [(torch.zeros(3), torch.zeros(2))]])
def test_wrong_pairs(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`pairs` must hold sequences with one target per input.* Got"):
        pad(wrong)
