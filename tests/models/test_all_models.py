"""What every model of the package can do, with every kind of core it makes sense for."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from lightning_stable import certify
from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback, TruncationProfileCallback
from lightning_stable.datamodules import ColumnStream
from lightning_stable.models import LanguageModel
from tests.helpers import ONLY_WEIGHTS, equal, trainer, weights
from tests.models.examples import loader, music, numbers, regressor, rolls, slots, utterances


def words(**kwargs: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(11, embedding_size=4, hidden_size=6, **{"num_layers": 2, "dropout": 0.0, **kwargs})


def text() -> ColumnStream:
    return ColumnStream(torch.randint(11, (67,), generator=torch.Generator().manual_seed(0)), 3, 5)


MODELS: dict[str, tuple[Any, Any]] = {
    "words": (words, text),
    "music": (music, lambda: loader(rolls())),
    "slots": (slots, lambda: loader(utterances())),
    "regressor": (regressor, lambda: loader(numbers())),
}
LOSS = {"words": "val_loss", "music": "val_nll", "slots": "val_loss", "regressor": "val_loss"}
models = pytest.mark.parametrize("kind", MODELS)


def answer(model: L.LightningModule, data: Any) -> Tensor:
    batch = next(iter(data))
    with torch.no_grad():
        output = model.eval()(batch[0], batch[2]) if type(model).__name__ == "SlotTagger" else model.eval()(batch[0])
    return output[0] if isinstance(output, tuple) else output


@models
@pytest.mark.parametrize("core", [{"cell": "gru"}, {"cell": "lstm", "window": 3}, {"core": "tcn", "kernel_size": 5}])
def test_comes_back_from_its_checkpoint(kind: str, core: dict[str, Any], tmp_path: Path) -> None:
    make, data = MODELS[kind]
    model = make(**core, dropout=0.25)
    run = trainer(tmp_path, ModelCheckpoint(tmp_path, "last"))
    run.fit(model, data(), data())
    assert not any(name.startswith("averages") for name in model.state_dict())
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    restored = type(model).load_from_checkpoint(tmp_path / "last.ckpt", **ONLY_WEIGHTS)
    assert restored.hparams == model.hparams
    assert restored.hparams.items() >= {**core, "dropout": 0.25}.items()
    assert restored.receptive_field == model.receptive_field
    assert torch.equal(answer(restored, data()), answer(model, data()))
    copied = deepcopy(model)  # with metrics that were used
    assert torch.equal(answer(copied, data()), answer(model, data()))
    assert trainer(tmp_path).validate(copied, data(), verbose=False) == trainer(tmp_path).validate(
        restored, data(), verbose=False
    )


@pytest.mark.parametrize(
    ("kind", "cell"),
    # Every model, and each cell with padded sequences and with sequences of one length.
    [("words", "lstm"), ("words", "gru"), ("music", "gru"), ("slots", "lstm"), ("slots", "rnn"), ("regressor", "rnn")],
)
def test_all_callbacks_at_once(kind: str, cell: str, tmp_path: Path) -> None:
    make, data = MODELS[kind]
    # With windows as long as the data the twin takes the same steps, on the same unknown words and dropout masks.
    options = {"unknown_rate": 0.5} if kind == "slots" else {}
    model = make(cell=cell, dropout=0.25, **options)
    callbacks = [
        StabilityProjectionCallback(0.9, input_bound=4.0),
        FeedForwardShadowCallback(100),
        FeedForwardShadowCallback(2, name="short"),
        TruncationProfileCallback(3, input_bound=4.0),
    ]
    run = trainer(tmp_path, *callbacks, limit_train_batches=2, log_every_n_steps=1)
    run.fit(model, data(), data())
    logged = run.callback_metrics
    assert logged["shadow/weight_distance"] < 1e-5
    assert logged["shadow/val_prediction_distance"] < 1e-5
    assert logged["shadow/val_loss"].item() == pytest.approx(logged[LOSS[kind]].item(), rel=0.3)  # by sequences
    assert abs(logged["shadow/val_loss_gap"]) < 1e-5
    assert logged["short/val_prediction_distance"] > 0
    assert "truncation/core/max_error" in logged
    assert certify(model, input_bound=4.0).rate <= 0.9


@models
@pytest.mark.parametrize(
    "core", [{"cell": "gru"}, {"cell": "lstm"}, {"cell": "lstm", "window": 3}, {"core": "tcn"}, {"core": "wavenet"}]
)
def test_half_precision(kind: str, core: dict[str, Any], tmp_path: Path) -> None:
    make, data = MODELS[kind]
    model = make(**core)
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(model, data(), data())
    assert math.isfinite(run.callback_metrics[LOSS[kind]])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    (exact,) = trainer(tmp_path).validate(model, data(), verbose=False)
    assert run.callback_metrics[LOSS[kind]].item() == pytest.approx(exact[LOSS[kind]], rel=0.02)


@models
@pytest.mark.parametrize("core", [{"cell": "gru", "window": 3}, {"core": "gated-conv", "kernel_size": 3}])
def test_command_line_builds_the_model(kind: str, core: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [""])
    by_hand = MODELS[kind][0](**core)
    given = {name: list(value) if name == "labels" else value for name, value in by_hand.hparams.items()}
    path = f"lightning_stable.models.{type(by_hand).__name__}"
    config = {"model": {"class_path": path, "init_args": given}, "seed_everything": 0}
    built = LightningCLI(args=config, run=False, trainer_defaults={"logger": False}).model
    assert type(built) is type(by_hand)
    assert equal(weights(built), weights(by_hand))
