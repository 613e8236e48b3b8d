import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.metrics import BitsPerCharacter, Perplexity

BATCHES = st.lists(st.lists(st.floats(0, 8, width=32), min_size=1, max_size=9), min_size=1, max_size=6)


@given(BATCHES)
def test_is_the_micro_average_however_it_is_fed(batches: list[list[float]]) -> None:
    tokens = [nll for batch in batches for nll in batch]
    expected = math.exp(math.fsum(tokens) / len(tokens))
    per_token, summed = Perplexity(), Perplexity()
    for batch in batches:
        per_token.update(torch.tensor(batch))
        summed.update(torch.tensor(batch, dtype=torch.float64).sum(), len(batch))
    assert per_token.compute().item() == pytest.approx(expected, rel=1e-12)
    assert summed.compute().item() == pytest.approx(expected, rel=1e-12)


@given(BATCHES)
def test_bits_per_character(batches: list[list[float]]) -> None:
    characters = [nll for batch in batches for nll in batch]
    metric = BitsPerCharacter()
    for batch in batches:
        metric.update(torch.tensor(batch))
    expected = math.fsum(nll / math.log(2) for nll in characters) / len(characters)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_count_may_be_a_tensor() -> None:
    metric = Perplexity()
    metric.update(torch.tensor([1.0, 3.0, 0.0]), torch.tensor(2))
    assert metric.compute().item() == pytest.approx(math.exp(2))


def test_keeps_digits_that_float32_would_lose() -> None:
    metric = Perplexity()
    metric.update(torch.tensor(2.0**24), 1)
    for _ in range(4):
        metric.update(torch.tensor(1.0), 1)
    assert metric.total.item() == 2**24 + 4
    assert metric.total.dtype == torch.float64
    assert metric.count.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_do_not_narrow_it(dtype: torch.dtype) -> None:
    metric = Perplexity()
    torch.nn.Sequential(metric).to(dtype)
    for _ in range(1000):
        metric.update(torch.tensor([1.0, 2.0], dtype=dtype))
    assert metric.compute().item() == pytest.approx(math.exp(1.5), rel=1e-12)


def test_reset() -> None:
    metric = Perplexity()
    metric.update(torch.tensor([9.0]))
    metric.reset()
    metric.update(torch.tensor([2.0]))
    assert metric.compute().item() == pytest.approx(math.exp(2))


def test_a_process_without_tokens_speaks_the_same_precision() -> None:
    sent = []

    def gather(value: torch.Tensor, group: object) -> list[torch.Tensor]:
        sent.append(value.dtype)
        return [value, value]

    Perplexity().sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert set(sent) == {torch.float64, torch.int64}


def test_sum_over_processes() -> None:
    metric = Perplexity(dist_sync_fn=lambda value, group: [value, 3 * value], distributed_available_fn=lambda: True)
    metric.update(torch.tensor([1.0, 2.0]))
    with metric.sync_context(dist_sync_fn=metric.dist_sync_fn, distributed_available=lambda: True):
        assert metric.total.item() == 12
        assert metric.count.item() == 8


def test_is_not_part_of_a_state_dict() -> None:
    assert Perplexity().state_dict() == {}


def test_no_tokens() -> None:
    with pytest.warns(UserWarning, match="before"):
        assert math.isnan(Perplexity().compute())


def test_negative_count() -> None:
    with pytest.raises(ValueError, match=r"`count` must not be negative\. Got -1\."):
        Perplexity().update(torch.tensor(1.0), -1)
