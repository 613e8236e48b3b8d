import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.datamodules import unigram_perplexity

IDS = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@given(IDS, IDS, st.integers(5, 9))
def test_is_add_one_smoothing(train: list[int], test: list[int], vocab_size: int) -> None:
    nll = [-math.log((train.count(token) + 1) / (len(train) + vocab_size)) for token in test]
    expected = math.exp(sum(nll) / len(nll))
    assert unigram_perplexity(torch.tensor(train), torch.tensor(test), vocab_size) == pytest.approx(expected)


def test_is_the_vocabulary_size_without_training_text() -> None:
    none = torch.tensor([], dtype=torch.long)
    assert unigram_perplexity(none, torch.tensor([0, 3]), 7) == pytest.approx(7)


def test_nothing_to_score() -> None:
    with pytest.raises(ValueError, match=r"`test_ids` must hold at least one token\. Got none\."):
        unigram_perplexity(torch.tensor([0]), torch.tensor([], dtype=torch.long), 2)


@pytest.mark.parametrize("name", ["train_ids", "test_ids"])
@pytest.mark.parametrize("bad", [-1, 2])
def test_id_outside_the_vocabulary(name: str, bad: int) -> None:
    ids = {"train_ids": torch.tensor([0]), "test_ids": torch.tensor([0]), name: torch.tensor([bad])}
    with pytest.raises(ValueError, match=rf"`{name}` must lie in 0 \.\. vocab_size - 1 = 1\. Got {bad}"):
        unigram_perplexity(**ids, vocab_size=2)
