import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable.datamodules import MemoryThroughputDataModule
from lightning_stable.datamodules.splits import SPLITS


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.integers(0, 99))
def test_format(length: int, input_size: int, delay: int, seed: int) -> None:
    data = MemoryThroughputDataModule(
        length=length, input_size=input_size, delay=delay, train_size=5, valid_size=2, test_size=1, seed=seed
    )
    data.setup()
    assert data.values == length * input_size
    for split in SPLITS:
        inputs, targets = data.tensors(split)
        assert inputs.shape == (data.sizes[split], length + delay, input_size)
        assert targets.shape == (data.sizes[split], data.values)
        assert inputs.dtype == targets.dtype == torch.float32
        assert torch.equal(inputs[:, :length].reshape(targets.shape), targets)
        assert not inputs[:, length:].any()
        assert targets.abs().max() <= 1


def test_the_baseline_and_the_bound_of_a_linear_read_out() -> None:
    data = MemoryThroughputDataModule(length=6)
    data.setup()
    targets = data.tensors("train")[1].double()
    assert targets.square().mean().item() == pytest.approx(data.baseline, rel=0.02)
    # The best that two linear units can do: two principal directions of six.
    kept = torch.linalg.svd(targets, full_matrices=False)[1].square()
    assert (kept[2:].sum() / targets.numel()).item() == pytest.approx((1 - 2 / 6) / 3, rel=0.03)
