import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable.datamodules import ParenthesesDataModule


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2), st.integers(1, 4), st.integers(0, 99))
def test_counts(length: int, kinds: int, noise: int, limit: int, seed: int) -> None:
    data = ParenthesesDataModule(
        length=length, kinds=kinds, noise=noise, limit=limit, train_size=3, valid_size=1, test_size=1, seed=seed
    )
    data.setup()
    for symbols, targets in zip(*data.tensors("train"), strict=True):
        assert targets.shape == (length, kinds)
        counts = [0] * kinds
        for symbol, target in zip(symbols.tolist(), targets, strict=True):
            assert 0 <= symbol < data.symbols == 2 * kinds + noise
            if symbol < 2 * kinds:
                kind, closes = divmod(symbol, 2)
                counts[kind] = min(limit, max(0, counts[kind] + (-1 if closes else 1)))
            assert target.tolist() == pytest.approx([count / limit for count in counts])


def test_symbols_are_uniform() -> None:
    data = ParenthesesDataModule(train_size=2000)
    data.setup()
    inputs, targets = data.tensors("train")
    assert (torch.bincount(inputs.flatten()) / inputs.numel() - 1 / 8).abs().max() < 0.01
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.float32)
