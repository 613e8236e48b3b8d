import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.datamodules import DictVocabulary, Vocabulary

TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d", "<unk>", "<eos>"]))


@given(TOKENS, st.integers(1, 4))
def test_build_keeps_the_frequent_tokens_and_nothing_else(tokens: list[str], min_frequency: int) -> None:
    vocab = DictVocabulary.build(tokens, min_frequency=min_frequency, specials=["<eos>"])
    frequent = {token for token, count in Counter(tokens).items() if count >= min_frequency}
    assert set(vocab.get_itos()) == frequent | {"<unk>", "<eos>"}
    assert len(vocab) == len(set(vocab.get_itos())) == len(vocab.get_itos())


@given(TOKENS)
def test_ids_are_positions_and_unknown_tokens_share_one(tokens: list[str]) -> None:
    vocab = DictVocabulary.build(tokens, min_frequency=2)
    itos = vocab.get_itos()
    assert [itos[index] for index in vocab(tokens)] == [token if token in itos else "<unk>" for token in tokens]


@given(TOKENS, st.randoms())
def test_order_depends_on_the_counts_only(tokens: list[str], random: object) -> None:
    shuffled = list(tokens)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert DictVocabulary.build(tokens).get_itos() == DictVocabulary.build(shuffled).get_itos()


def test_order_is_frequency_then_alphabet() -> None:
    vocab = DictVocabulary.build(["b", "a", "c", "c", "d", "d"], specials=["<eos>"])
    assert vocab.get_itos() == ["<unk>", "<eos>", "c", "d", "a", "b"]


def test_survives_pickling() -> None:
    vocab = DictVocabulary.build(["to", "be", "or", "not", "to", "be"])
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy.get_itos() == vocab.get_itos()
    assert copy(["be", "?"]) == vocab(["be", "?"])


def test_satisfies_the_protocol() -> None:
    assert isinstance(DictVocabulary(["<unk>"]), Vocabulary)
    assert not isinstance({"<unk>": 0}, Vocabulary)


def test_itos_is_a_copy() -> None:
    vocab = DictVocabulary(["<unk>", "a"])
    vocab.get_itos().clear()
    assert len(vocab.get_itos()) == 2


def test_missing_unknown_token() -> None:
    with pytest.raises(ValueError, match=r"`tokens` must hold the unknown token '<unk>'.*Got 2"):
        DictVocabulary(["a", "b"])


def test_repeated_token() -> None:
    with pytest.raises(ValueError, match=r"`tokens` must be distinct.*Got \['a'\]"):
        DictVocabulary(["<unk>", "a", "a"])


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError)])
def test_wrong_min_frequency(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`min_frequency` must be a positive integer\. Got"):
        DictVocabulary.build(["a"], min_frequency=value)
