import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_stable.metrics import FrameNLL, frame_nll

KEYS = 5


def slow(logits: Tensor, targets: Tensor) -> list[float]:
    """Nats of each frame of ``(frames, keys)``, in Python's floats."""
    return [
        math.fsum(-math.log(1 / (1 + math.exp(-x if y else x))) for x, y in zip(frame, keys, strict=True))
        for frame, keys in zip(logits.tolist(), targets.tolist(), strict=True)
    ]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 99))
def test_is_the_micro_average_over_frames(batches: list[list[int]], seed: int) -> None:
    """Sequences of the given lengths, in padded batches of different size."""
    generator = torch.Generator().manual_seed(seed)
    metric, frames = FrameNLL(), []
    for lengths in batches:
        shape = (len(lengths), max(lengths), KEYS)
        logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        targets = torch.rand(shape, generator=generator) < 0.3
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        logits[~mask] = math.nan
        for sequence, keys, length in zip(logits, targets, lengths, strict=True):
            frames += slow(sequence[:length], keys[:length])
        metric.update(*frame_nll(logits, targets, mask))
    if frames:
        assert metric.compute().item() == pytest.approx(math.fsum(frames) / len(frames), rel=1e-12)
    else:
        assert math.isnan(metric.compute())


def test_without_a_mask_all_frames_count() -> None:
    total, count = frame_nll(torch.zeros(2, 3, KEYS), torch.zeros(2, 3, KEYS))
    assert count == 6
    assert total.item() == pytest.approx(6 * KEYS * math.log(2))


def test_half_precision_is_summed_in_single() -> None:
    logits, targets = torch.zeros(20, 100, KEYS, dtype=torch.bfloat16), torch.ones(20, 100, KEYS, dtype=torch.uint8)
    total, count = frame_nll(logits, targets)
    assert total.dtype == torch.float32
    assert total.item() / count == pytest.approx(KEYS * math.log(2), rel=1e-5)


def test_padding_has_no_gradient() -> None:
    logits = torch.randn(2, 4, KEYS, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    logits[~mask] = math.nan
    logits.requires_grad_()
    frame_nll(logits, torch.zeros(2, 4, KEYS), mask)[0].backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, mask[..., None].expand(-1, -1, KEYS))
    torch.testing.assert_close(logits.grad[mask], logits[mask].sigmoid())


def test_bad_shapes() -> None:
    logits, mask = torch.zeros(2, 3, KEYS), torch.ones(2, 3, dtype=torch.bool)
    for arguments in (logits[0], logits[0]), (logits, logits[:1]):
        with pytest.raises(ValueError, match=r"`logits` and `targets` must have one shape .* Got \("):
            frame_nll(*arguments)
    wrong: Any
    for wrong in mask[:1], mask.float(), mask[0]:
        with pytest.raises(ValueError, match=r"`mask` must be bool of shape \(2, 3\)\. Got torch"):
            frame_nll(logits, logits, wrong)
