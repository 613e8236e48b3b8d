import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.datamodules.python_docs import paragraphs, split_paragraphs, words_and_symbols

# Topics that quote each other: few distinct paragraphs, in blocks long enough to reach every split.
TOPICS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(st.integers(0, 150).map(lambda n: f"Paragraph {n}"), max_size=150).map("\n\n".join),
    max_size=4,
)


@pytest.fixture(scope="module")
def data() -> PythonDocsDataModule:
    data = PythonDocsDataModule()
    data.setup()
    return data


def test_paragraphs_are_unwrapped_and_rulings_dropped() -> None:
    text = "The title\n*********\n\nOne paragraph\n  on two lines.\n \t\n   x **= 2\n\n"
    table = "+------+-----+\n| a ** | b   |\n|======|=====|\n\n"
    assert paragraphs(text + table + text)[:3] == ["The title", "One paragraph on two lines.", "x **= 2"]
    (row,) = paragraphs(table)
    assert "| a ** | b |" in row
    assert "----" not in row
    assert "====" not in row


def test_tokenizer() -> None:
    assert " ".join(words_and_symbols('Use "x.y(**k)", __eq__!')) == 'use " x . y ( * * k ) " , __eq__ !'


@given(TOPICS)
def test_no_paragraph_of_an_evaluation_split_was_seen_before(topics: dict[str, str]) -> None:
    splits = split_paragraphs(topics)
    train, valid, test = (splits[name] for name in ("train", "valid", "test"))
    assert not set(train) & set(valid)
    assert not (set(train) | set(valid)) & set(test)
    assert len(set(valid)) == len(valid)
    assert len(set(test)) == len(test)
    assert set(train) | set(valid) | set(test) == {p for text in topics.values() for p in paragraphs(text)}


@given(TOPICS)
def test_split_does_not_depend_on_the_order_of_the_topics(topics: dict[str, str]) -> None:
    assert split_paragraphs(topics) == split_paragraphs(dict(reversed(topics.items())))


def test_training_keeps_repetitions_and_case_is_no_difference() -> None:
    lines = ["same."] * 80 + ["SAME ."] * 10 + ["new"] * 10
    splits = split_paragraphs({"topic": "\n\n".join(lines)})
    assert splits == {"train": ["same."] * 80, "valid": [], "test": ["new"]}


def test_the_real_splits_share_no_paragraph(data: PythonDocsDataModule) -> None:
    """As words, that is as a model sees them, before rare words become one."""
    train, valid, test = (
        {" ".join(words_and_symbols(line)) for line in data.lines(split)} for split in ("train", "valid", "test")
    )
    assert min(len(valid), len(test)) > 100
    assert not train & valid
    assert not (train | valid) & test


def test_defaults_work(data: PythonDocsDataModule) -> None:
    assert 60_000 < len(data.stream("train")) < 130_000
    assert 1_000 < len(data.vocab) < 3_000
    for split in ("valid", "test"):
        assert 4_000 < len(data.stream(split)) < 15_000
    assert [next(iter(loader))[0].shape for loader in (data.train_dataloader(), data.test_dataloader())] == [
        (20, 35),
        (10, 35),
    ]


def test_unknown_words_occur_in_training(data: PythonDocsDataModule) -> None:
    unknown = data.vocab(["surely not a word"])[0]
    assert 0 < int((data.stream("train") == unknown).sum()) < 0.05 * len(data.stream("train"))


def test_vocabulary_is_that_of_the_training_split(data: PythonDocsDataModule) -> None:
    counts = data.stream("train").bincount(minlength=len(data.vocab))
    specials = 2
    assert int(counts[specials:].min()) == 3


def test_unigram_floor(data: PythonDocsDataModule) -> None:
    assert 100 < data.unigram_perplexity("test") < 400


def test_is_deterministic(data: PythonDocsDataModule) -> None:
    again = PythonDocsDataModule()
    again.setup()
    assert again.vocab.get_itos() == data.vocab.get_itos()
    assert torch.equal(again.stream("test"), data.stream("test"))


def test_characters() -> None:
    data = PythonDocsDataModule(level="character")
    data.setup()
    assert len(data.vocab) < 150
    assert len(data.stream("train")) > 300_000
    assert {"T", "t", " ", "<eos>"} <= set(data.vocab.get_itos())
