import pickle
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_stable.metrics import ChunkF1, ChunkPrecision, ChunkRecall
from tests.metrics.conlleval import conlleval, f1

LABELS = ("O", "B-a", "I-a", "B-b", "I-b", "I-b-c", "B-city_name.from")
PADDING = -100

Pairs = list[tuple[list[str], list[str]]]
TAGS = st.sampled_from(LABELS)
SEQUENCE = st.lists(st.tuples(TAGS, TAGS), max_size=8).map(lambda pairs: ([p for p, _ in pairs], [g for _, g in pairs]))
BATCHES = st.lists(st.lists(SEQUENCE, min_size=1, max_size=4), min_size=1, max_size=4)


def ids(sequences: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Padded ids and their mask."""
    time = max(map(len, sequences))
    padded = [[LABELS.index(tag) for tag in tags] + [PADDING] * (time - len(tags)) for tags in sequences]
    tensor = torch.tensor(padded, dtype=torch.long).reshape(len(sequences), time)
    return tensor, tensor != PADDING


def update(metric: Any, pairs: Pairs) -> None:
    predictions, mask = ids([predicted for predicted, _ in pairs])
    metric.update(predictions, ids([gold for _, gold in pairs])[0], mask)


def counts(*pairs: tuple[str, str]) -> tuple[int, int, int]:
    metric = ChunkF1(LABELS)
    update(metric, [(predicted.split(), gold.split()) for predicted, gold in pairs])
    return int(metric.correct), int(metric.predicted), int(metric.gold)


@settings(deadline=None, max_examples=100)
@given(BATCHES)
def test_agrees_with_conlleval_on_any_tags(batches: list[Pairs]) -> None:
    scores: Any = [ChunkF1(LABELS), ChunkPrecision(LABELS), ChunkRecall(LABELS)]
    for batch in batches:
        for score in scores:
            update(score, batch)
    expected = conlleval(pair for batch in batches for pair in batch)
    correct, predicted, gold = expected
    assert (scores[0].correct, scores[0].predicted, scores[0].gold) == expected
    values = [score.compute().item() for score in scores]
    assert values == pytest.approx([f1(expected), correct / max(1, predicted), correct / max(1, gold)], rel=1e-6)


@pytest.mark.parametrize(
    ("tags", "chunks"),
    [
        ("O O", 0),
        ("B-a I-a I-a", 1),
        ("O I-a I-a O", 1),  # I- after O begins a chunk
        ("I-a O I-a", 2),
        ("B-a I-b I-b", 2),  # and so does another type
        ("I-a I-b", 2),
        ("I-b I-b-c", 2),  # the type is all behind the first dash
        ("I-a B-a", 2),
        ("B-a B-a", 2),
    ],
)
def test_rules(tags: str, chunks: int) -> None:
    assert counts((tags, tags)) == (chunks, chunks, chunks) == conlleval([(tags.split(), tags.split())])


def test_by_hand() -> None:
    assert counts(("B-a I-a O", "B-a O O")) == (0, 1, 1)  # too long
    assert counts(("O I-a O", "B-a I-a O")) == (0, 1, 1)  # too short
    assert counts(("B-a I-a O", "B-b I-b O")) == (0, 1, 1)  # another type
    assert counts(("O I-a I-a", "O B-a I-a")) == (1, 1, 1)  # the same chunk in other words
    assert counts(("B-a O B-b I-b", "B-a O O B-b")) == (1, 2, 2)


def test_chunks_end_with_their_sequence() -> None:
    assert counts(("B-a I-a", "B-a I-a"), ("I-a O", "I-a O")) == (2, 2, 2)


def test_no_chunk_anywhere_is_zero() -> None:
    metric = ChunkF1(LABELS)
    update(metric, [(["O", "O"], ["O", "O"])])
    assert metric.compute().item() == 0


def test_without_a_mask_everything_counts() -> None:
    metric = ChunkF1(LABELS)
    metric.update(torch.tensor([[1, 0, 3]]), torch.tensor([[1, 0, 0]]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_a_collection_counts_once() -> None:
    scores: Any = [ChunkF1(LABELS), ChunkPrecision(LABELS), ChunkRecall(LABELS)]
    collection = MetricCollection(scores)
    for _ in range(3):
        update(collection, [(["B-a", "B-b", "O"], ["B-a", "O", "O"])])
    assert [*collection.compute_groups.values()] == [["ChunkF1", "ChunkPrecision", "ChunkRecall"]]
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == pytest.approx({"ChunkF1": 2 / 3, "ChunkPrecision": 0.5, "ChunkRecall": 1.0})


def test_reset_and_pickling() -> None:
    metric = ChunkF1(LABELS)
    update(metric, [(["B-a"], ["O"])])
    metric.reset()
    update(metric, [(["B-a"], ["B-a"])])
    assert pickle.loads(pickle.dumps(metric)).compute().item() == 1
    assert metric.state_dict() == {}


@pytest.mark.parametrize("label", ["", "B", "B-", "E-a", "o", "<pad>", "X-a"])
def test_bad_labels(label: str) -> None:
    with pytest.raises(ValueError, match=rf"`labels` must be 'O', 'B-x' or 'I-x' with a type x\. Got {label!r}"):
        ChunkF1(["O", label])


@pytest.mark.parametrize("metric", [ChunkF1, ChunkPrecision, ChunkRecall])
@pytest.mark.parametrize(
    ("labels", "error"), [([], ValueError), ("O", TypeError), (3, TypeError), (["O", 3], TypeError)]
)
def test_no_list_of_labels(metric: Any, labels: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`labels` must .* Got"):
        metric(labels)


def test_bad_tensors() -> None:
    metric, good = ChunkF1(LABELS), torch.zeros(2, 3, dtype=torch.long)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for arguments in (good[0], good[0]), (good, good[:1]), (good, good, mask[:1]), (good, good, mask.long()):
        with pytest.raises(ValueError, match=r"must have one shape \(batch, time\), `mask` in bool\. Got torch"):
            metric.update(*arguments)
    for bad in -1, len(LABELS):
        with pytest.raises(ValueError, match=rf"`predictions` must be ids of the 7 labels\. Got {bad}\."):
            metric.update(good + bad, good)
        with pytest.raises(ValueError, match=rf"`targets` must be ids of the 7 labels\. Got {bad}\."):
            metric.update(good, good + bad)


def test_without_seqeval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-stable\[slots\]"):
        ChunkF1(LABELS)
