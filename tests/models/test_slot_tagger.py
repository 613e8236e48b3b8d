import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_stable.datamodules.padded import Pair, pad
from lightning_stable.models import SlotTagger
from tests.helpers import trainer
from tests.metrics.conlleval import conlleval, f1
from tests.models.examples import CORES, LABELS, WORDS, Utterances, loader, scored, slots, spoiled, utterances


@torch.no_grad()
def reference(model: SlotTagger, pairs: list[Pair]) -> tuple[float, float]:
    """Cross entropy per word and F1, one utterance after the other."""
    model, total, tags = model.eval(), 0.0, []
    for words, targets in pairs:
        scores = model(words[None])[0].double()
        total -= sum(row.log_softmax(0)[target].item() for row, target in zip(scores, targets, strict=True))
        tags.append(([LABELS[i] for i in scores.argmax(-1)], [LABELS[i] for i in targets]))
    return total / sum(len(words) for words, _ in pairs), f1(conlleval(tags))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("core", CORES)
def test_logged_are_loss_and_f1_of_the_split(core: str, bidirectional: bool, tmp_path: Path) -> None:
    model = slots(**CORES[core], bidirectional=bidirectional, unknown_rate=0.5)
    splits = [utterances(), utterances(1, (3, 8, 6, 2))]
    logged = scored(tmp_path, model, [loader(pairs) for pairs in splits])
    for index, pairs in enumerate(splits):
        loss, score = reference(model, pairs)
        assert logged[index][f"test_loss/dataloader_idx_{index}"] == pytest.approx(loss, rel=1e-5)
        assert logged[index][f"test_f1/dataloader_idx_{index}"] == pytest.approx(score, rel=1e-6)


def test_f1_by_hand(tmp_path: Path) -> None:
    class Oracle(SlotTagger):
        def forward(self, words: Tensor, lengths: Tensor | None = None) -> Tensor:
            return torch.eye(len(LABELS))[words % len(LABELS)] + 0 * self.head.bias

    # Of the chunks a(0-1), b(3), a(0) the model finds the first and the last, and b(3-4) instead of the second.
    predicted, gold = ["B-a I-a O B-b I-b", "B-a"], ["B-a I-a O B-b O", "B-a"]
    ids = [[torch.tensor([LABELS.index(tag) for tag in tags.split()]) for tags in both] for both in (predicted, gold)]
    pairs = list(zip(*ids, strict=True))
    (logged,) = scored(tmp_path, Oracle(WORDS, LABELS), loader(pairs))
    assert logged["test_f1"] == pytest.approx(2 / 3)
    wrong, right = math.log(4 + math.e), math.log(4 + math.e) - 1
    assert logged["test_loss"] == pytest.approx((5 * right + wrong) / 6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("core", ["gru", "lstm-k3", "tcn"])
def test_padding_changes_neither_loss_nor_gradients(core: str, bidirectional: bool) -> None:
    batch = pad(utterances(), target_padding=-100)
    model, seen = slots(**CORES[core], bidirectional=bidirectional), []
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    for one in (batch, spoiled(batch)):
        loss = model.training_step(one, 0)
        seen.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second)
    assert seen[0][0].item() == pytest.approx(reference(model, utterances())[0], rel=1e-5)


def test_unknown_words_in_training_alone() -> None:
    model, read = slots(unknown_rate=0.25), []
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    model.embedding.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    words = torch.randint(1, WORDS, (40, 50))
    batch = pad([(row, torch.zeros_like(row)) for row in words])
    model.training_step(batch, 0)
    hidden = read[0] == 0
    assert 0.2 < hidden.float().mean() < 0.3
    assert torch.equal(read[0][~hidden], words[~hidden])
    assert torch.equal(batch.inputs, words)
    model.eval()
    model.predict_step(batch, 0)
    model.validation_step(batch, 0)
    assert all(torch.equal(seen, words) for seen in read[1:])


def test_predictions_are_the_labels_of_every_word(tmp_path: Path) -> None:
    model = slots()
    predicted = trainer(tmp_path).predict(model, loader(utterances()))
    with torch.no_grad():
        expected = [[LABELS[i] for i in model.eval()(words[None])[0].argmax(-1)] for words, _ in utterances()]
    assert [tags for batch in predicted for tags in batch] == expected  # type: ignore[union-attr]


def test_learns_what_it_was_taught_and_no_other_label(tmp_path: Path) -> None:
    """The label follows from the word after it; I-b is unseen in training and counts as missed."""

    def label(words: Tensor) -> Tensor:
        return words.roll(-1) % 4

    train = [(words, label(words)) for words, _ in utterances(0, (6, 9) * 20)]
    valid = [(words, torch.where(label(words) == 0, 4, label(words))) for words, _ in utterances(1, (5, 8))]
    model = slots(learning_rate=0.03, hidden_size=16)
    run = trainer(tmp_path, max_epochs=20)
    run.fit(model, loader(train, 8), loader(valid, 2))
    loss, score = reference(model, valid)
    assert run.callback_metrics["val_f1"].item() == pytest.approx(score, rel=1e-6)
    assert run.callback_metrics["val_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert reference(model, train)[1] > 0.95
    assert 0 < score < 0.95
    assert not any("I-b" in tags for tags in model.predict_step(pad(valid), 0))


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    model = slots()
    (two,) = scored(tmp_path, model, Utterances(batch_size=2), strategy="ddp_fork", devices=2)
    loss, score = reference(model, utterances(2))
    assert two == pytest.approx({"test_loss": loss, "test_f1": score}, rel=1e-5)


def test_dropout_reaches_all_places() -> None:
    model = slots(dropout=0.25, input_dropout=0.5)
    assert (model.core.dropout, model.dropout.p, model.input_dropout.p) == (0.25, 0.25, 0.5)
    words, read = torch.randint(WORDS, (2, 50)), []
    model.core.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(words)
    dropped = read[0] == 0
    assert dropped.any()
    torch.testing.assert_close(read[0][~dropped], 2 * model.embedding(words)[~dropped])
