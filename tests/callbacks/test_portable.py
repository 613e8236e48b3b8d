"""Callbacks in pickles, in copies, and among the hyperparameters of a module."""

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StableModelCheckpoint,
    StateGradientCallback,
    TruncationPenaltyCallback,
    TruncationProfileCallback,
)
from tests.helpers import FEATURES, TIME, equal, sequences, trainer, weights

UNITS = 560  # 5 MB of weights
COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


class Large(L.LightningModule):
    """A model with the keywords of its Trainer among its hyperparameters, as libraries of forecasters keep them."""

    def __init__(self, units: int = UNITS, **trainer_kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.core = nn.LSTM(FEATURES, units, batch_first=True)
        self.head = nn.Linear(units, FEATURES)

    def loss(self, batch: Tensor) -> Tensor:
        return (self.head(self.core(batch.clamp(-2, 2)[:, :-1])[0]) - batch[:, 1:]).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Snapshots(L.Callback):
    """Copies the callbacks of this library wherever they may be in a run."""

    def __init__(self, made_by: Any) -> None:
        self.made_by, self.copies = made_by, []

    def take(self, run: Any, *_: Any) -> None:
        ours = [callback for callback in run.callbacks if type(callback).__module__.startswith("lightning_stable.")]
        self.copies += [self.made_by(callback) for callback in ours]

    on_fit_start = on_train_batch_start = on_train_batch_end = on_validation_batch_end = on_train_end = take


def callbacks(path: Path) -> list[Any]:
    return [
        StabilityProjectionCallback(0.9),
        FeedForwardShadowCallback(2),
        TruncationProfileCallback(2),
        StateGradientCallback(2),
        StableModelCheckpoint(dirpath=path),
        TruncationPenaltyCallback(1),
    ]


def test_pickles_are_small(tmp_path: Path) -> None:
    snapshots, ours = Snapshots(lambda callback: len(pickle.dumps(callback))), callbacks(tmp_path)
    trainer(tmp_path, snapshots, *ours, num_sanity_val_steps=0).fit(Large(), sequences(1), sequences(1))
    assert len(snapshots.copies) == 5 * len(ours)
    assert max(*snapshots.copies, *(len(pickle.dumps(callback)) for callback in ours)) < 200_000


@pytest.mark.parametrize("made_by", COPIES)
def test_copies_share_nothing_with_the_run_and_work_in_another(made_by: str, tmp_path: Path) -> None:
    def fit(path: Path, ours: list[Any], *others: L.Callback) -> Any:
        torch.manual_seed(0)
        model = Large(4)
        trainer(path, *ours, *others, num_sanity_val_steps=0).fit(model, sequences(2), sequences(1))
        return model

    plain, ours = callbacks(tmp_path / "plain"), callbacks(tmp_path / "ours")
    snapshots = Snapshots(COPIES[made_by])
    first, second = fit(tmp_path, plain), fit(tmp_path, ours, snapshots)
    assert equal(weights(first), weights(second))
    report = str(ours[0].report)
    for taken in (snapshots.copies[: len(ours)], snapshots.copies[-len(ours) :]):
        assert taken[1].twin is None
        third = fit(tmp_path / "third", taken)
        assert equal(weights(first), weights(third))
        assert taken[0].report is not None
        assert taken[1].twin is not ours[1].twin
    assert str(ours[0].report) == report


def test_results_stay_readable(tmp_path: Path) -> None:
    ours = callbacks(tmp_path)
    trainer(tmp_path, *ours).fit(Large(4), sequences(2), sequences(1))
    again = [pickle.loads(pickle.dumps(callback)) for callback in ours]
    for index in (0, 4):
        assert str(again[index].report) == str(ours[index].report)
        assert again[index].report.required_window(0.1) is None
        assert ours[index].report.required_window(0.1) is not None
    assert again[0].input_ranges.keys() == ours[0].input_ranges.keys()
    assert again[4].best_model_path == ours[4].best_model_path
    assert again[2].profiles["core"].required_window(1e9) == 1
    assert ours[3].reports.keys() == {"core"}
    assert again[3].reports == {}


def test_callbacks_among_hyperparameters(tmp_path: Path) -> None:
    ours = callbacks(tmp_path)
    run = trainer(tmp_path, *ours)
    run.fit(Large(4, callbacks=ours), sequences(2), sequences(1))
    path = ours[4].best_model_path
    kwargs = (
        {"weights_only": False} if "weights_only" in run.fit.__code__.co_varnames else {}
    )  # unknown to Lightning 2.4
    if kwargs:
        with pytest.raises(pickle.UnpicklingError, match="weights_only"):
            Large.load_from_checkpoint(path, weights_only=True)
    model = Large.load_from_checkpoint(path, **kwargs)
    loaded = model.hparams.callbacks
    assert loaded[0].report.rate <= 0.9
    again = trainer(tmp_path / "again", *loaded, max_epochs=2)
    again.fit(model, sequences(2), sequences(1), ckpt_path=path, **kwargs)
    assert loaded[0].steps == 4
    assert loaded[0].report.rate <= 0.9
    assert TIME > 2
