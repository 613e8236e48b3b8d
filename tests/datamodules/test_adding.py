import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable.datamodules import AddingDataModule
from lightning_stable.datamodules.splits import SPLITS


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 21), st.integers(0, 99))
def test_format(length: int, seed: int) -> None:
    data = AddingDataModule(length=length, train_size=5, valid_size=2, test_size=1, seed=seed)
    data.setup()
    for split in SPLITS:
        inputs, targets = data.tensors(split)
        assert inputs.shape == (data.sizes[split], length, 2)
        assert targets.shape == (data.sizes[split], 1)
        assert inputs.dtype == targets.dtype == torch.float32
        for (numbers, marks), target in zip(inputs.transpose(1, 2).tolist(), targets, strict=True):
            assert all(0 <= number < 1 for number in numbers)
            assert set(marks) <= {0.0, 1.0}
            first, second = (step for step, mark in enumerate(marks) if mark)
            assert first < length // 2 <= second
            assert target.item() == pytest.approx(numbers[first] + numbers[second])


def test_numbers_and_marks_are_uniform() -> None:
    data = AddingDataModule(length=5, train_size=20_000)
    data.setup()
    numbers, marks = data.tensors("train")[0].double().unbind(2)
    assert (marks.mean(0) - torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])).abs().max() < 0.02
    for quantile in 0.1, 0.5, 0.9:
        assert ((numbers < quantile).double().mean(0) - quantile).abs().max() < 0.02
    assert torch.corrcoef(torch.cat([numbers, marks[:, [0, 2, 3]]], 1).T).triu(1)[:5].abs().max() < 0.04


def test_the_baseline_is_the_score_of_always_saying_one() -> None:
    data = AddingDataModule(length=20, test_size=20_000)
    data.setup()
    targets = data.tensors("test")[1].double()
    assert targets.mean().item() == pytest.approx(1, abs=0.01)
    assert (targets - 1).square().mean().item() == pytest.approx(data.baseline, rel=0.03)
