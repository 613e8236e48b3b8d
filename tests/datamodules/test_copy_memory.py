import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_stable.datamodules import CopyMemoryDataModule
from lightning_stable.datamodules.splits import SPLITS


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_format(delay: int, copied: int, symbols: int, seed: int) -> None:
    data = CopyMemoryDataModule(
        delay=delay, copied=copied, symbols=symbols, train_size=3, valid_size=2, test_size=1, seed=seed
    )
    data.setup()
    for split in SPLITS:
        for inputs, targets in zip(*data.tensors(split), strict=True):
            remembered = inputs[:copied].tolist()
            assert all(1 <= symbol <= symbols for symbol in remembered)
            assert inputs.tolist() == [*remembered, *[0] * (delay - 1), *[symbols + 1] * (copied + 1)]
            assert targets.tolist() == [*[0] * (delay + copied), *remembered]
            assert inputs.dtype == targets.dtype == torch.int64


def test_default_sizes_are_those_of_the_papers() -> None:
    data = CopyMemoryDataModule()
    data.setup()
    assert data.tensors("test")[0].shape == (1000, 120)
    assert data.num_classes == 10
    assert data.baseline == pytest.approx(10 * math.log(8) / 120)
    assert CopyMemoryDataModule(delay=1000).baseline == pytest.approx(0.0204, abs=5e-5)  # Bai et al., table 1: LSTM


def test_symbols_are_uniform_and_independent() -> None:
    data = CopyMemoryDataModule(train_size=20_000)
    data.setup()
    symbols = data.tensors("train")[0][:, :10] - 1
    pairs = F.one_hot(symbols[:, 0] * 8 + symbols[:, 1], 64).double().mean(0)
    assert F.one_hot(symbols, 8).double().mean(0).sub(1 / 8).abs().max() < 0.01
    assert pairs.sub(1 / 64).abs().max() < 0.004


def test_the_baseline_is_the_score_of_its_predictor() -> None:
    data = CopyMemoryDataModule(delay=30, copied=5, symbols=4, test_size=20_000)
    data.setup()
    targets = data.tensors("test")[1]
    zeros = torch.eye(6)[0].log().expand(35, -1)
    # The shares of the symbols as they were drawn, so that the score is one that was measured.
    shares = F.one_hot(targets[:, 35:], 6).double().mean((0, 1)).float().log().expand(5, -1)
    logits = torch.cat([zeros, shares]).expand(len(targets), -1, -1)
    assert F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() == pytest.approx(data.baseline, rel=1e-3)
