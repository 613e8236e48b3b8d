from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_stable.datamodules.padded import Pair, pad
from lightning_stable.models import MusicModel
from tests.helpers import trainer
from tests.models.examples import CORES, KEYS, LENGTHS, loader, music, rolls, scored, spoiled


@torch.no_grad()
def nats_per_frame(model: MusicModel, pairs: list[Pair]) -> float:
    """One sequence after the other, key by key."""
    model, total = model.eval().double(), 0.0
    for inputs, targets in pairs:
        chances = model(inputs[None].double())[0].sigmoid()
        total -= torch.where(targets == 1, chances, 1 - chances).log().sum().item()
    model.float()
    return total / sum(len(inputs) for inputs, _ in pairs)


@pytest.mark.parametrize("core", CORES)
def test_logged_are_the_nats_per_frame_of_the_split(core: str, tmp_path: Path) -> None:
    model = music(**CORES[core])
    pairs = [rolls(), rolls(1, (3, 8, 6, 2))]
    for batch_size in (3, 7):
        logged = scored(tmp_path, model, [loader(split, batch_size) for split in pairs])
        for index, split in enumerate(pairs):
            expected = nats_per_frame(model, split)
            assert logged[index][f"test_nll/dataloader_idx_{index}"] == pytest.approx(expected, rel=1e-5)


def test_untrained_it_predicts_how_often_keys_sound() -> None:
    frequencies = [(1 + key) / 100 for key in range(KEYS)]
    model = music(key_frequencies=frequencies)
    torch.nn.init.zeros_(model.head.weight)
    torch.testing.assert_close(model(rolls()[0][0][None]).sigmoid()[0, 0], torch.tensor(frequencies))


@pytest.mark.parametrize("frequencies", [[0.5] * (KEYS + 1), [1.0] * KEYS, [float("nan")] * KEYS])
def test_frequencies_must_be_those_of_the_keys(frequencies: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`key_frequencies` must be .* in \(0, 1\)\. Got"):
        music(key_frequencies=frequencies)


def test_padding_changes_neither_loss_nor_gradients() -> None:
    batch, model = pad(rolls()), music()
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    seen = []
    for one in (batch, spoiled(batch)):
        loss = model.training_step(one, 0)
        seen.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second)
    assert seen[0][0].item() == pytest.approx(nats_per_frame(model, rolls()), rel=1e-5)


def test_prediction_is_the_chance_of_every_key(tmp_path: Path) -> None:
    model = music()
    predicted = trainer(tmp_path).predict(model, loader(rolls()))
    assert predicted is not None
    assert [tuple(part.shape) for part in predicted] == [(3, 9, KEYS), (3, 7, KEYS), (1, LENGTHS[-1], KEYS)]
    with torch.no_grad():
        expected = F.sigmoid(model.eval()(rolls()[-1][0][None]))
    torch.testing.assert_close(predicted[-1], expected)


def test_learns(tmp_path: Path) -> None:
    """Of a fixed succession of chords nothing remains uncertain; what was scored in an epoch before does not count."""
    chords = torch.eye(KEYS)[torch.arange(31) % KEYS]
    pairs = [(chords[:-1], chords[1:]), (chords[:20], chords[1:21])]
    model = music(hidden_size=16, num_layers=1, learning_rate=0.05)
    run = trainer(tmp_path, max_epochs=40)
    run.fit(model, loader(pairs, 2), loader(pairs, 1))
    assert run.callback_metrics["val_nll"] < 0.5
    assert run.callback_metrics["val_nll"].item() == pytest.approx(nats_per_frame(model, pairs), rel=1e-5)
    assert "train_nll" in run.callback_metrics


def test_dropout_reaches_all_places() -> None:
    model = music(dropout=0.25, input_dropout=0.5)
    assert (model.core.dropout, model.dropout.p, model.input_dropout.p) == (0.25, 0.25, 0.5)
    inputs = torch.ones(1, 50, KEYS)
    seen: list[Any] = []
    for module in (model.core, model.head):
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(inputs)
    model.eval()(inputs)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert 0.15 < (seen[1] == 0).float().mean() < 0.35
    assert torch.equal(seen[2], inputs)
    assert seen[3].all()
