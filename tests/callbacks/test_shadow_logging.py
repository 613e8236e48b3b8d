"""What the shadow callback logs: losses, distances, predictions, names and times."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_stable.callbacks import FeedForwardShadowCallback
from lightning_stable.truncation import truncate
from tests.callbacks.loggers import Values
from tests.callbacks.shadows import (
    WHOLE,
    AfterBatch,
    Noisy,
    fit,
    nothing,
    projection,
    seed,
    shadowed,
    state,
    warned,
)
from tests.helpers import FEATURES, UNITS, Recurrent, Sequences, equal, sequences, trainer, weights

TRAIN = {
    *("loss", "loss_gap", "weight_distance", "weight_distance_relative", "weight_distance/core"),
    *("weight_distance/head", "prediction_distance", "prediction_distance_relative", "step_time_ratio"),
}


VALIDATION = {
    *("val_loss", "val_loss_gap", "val_weight_distance", "val_weight_distance_relative"),
    *("val_prediction_distance", "val_prediction_distance_relative"),
}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_values_are_what_they_say(accumulate: int, tmp_path: Path) -> None:
    """Recomputed from weights before and after the steps, without dropout."""
    model, ours, probe, logger = Recurrent("lstm", growth=0.1), FeedForwardShadowCallback(1), AfterBatch(), Values()
    probe = AfterBatch(ours)
    start = weights(model)
    run = trainer(
        tmp_path, ours, probe, logger=logger, log_every_n_steps=2, accumulate_grad_batches=accumulate, max_epochs=1
    )
    loader, evaluation = sequences(13), sequences(3, seed=1)
    run.fit(model, loader, evaluation)
    batches = list(loader)
    stepping = [index for index in range(13) if (index + 1) % accumulate == 0 or index == 12]
    due = [index for number, index in enumerate(stepping, 1) if number % 2 == 0]
    gaps = []
    assert list(logger.lines("shadow/loss")) == list(range(1, len(stepping), 2))
    for index, (step, _) in zip(due, logger.lines("shadow/loss").items(), strict=True):
        logged = {
            name: logger.lines(f"shadow/{name}")[step] for name in TRAIN if step in logger.lines(f"shadow/{name}")
        }
        assert logged.keys() == TRAIN
        both = [copy.deepcopy(model), truncate(copy.deepcopy(model), 1)]
        losses, outputs = [], []
        for module, before in zip(both, (probe.model[index - 1], probe.twins[index - 1][0]), strict=True):
            module.load_state_dict(before)
            losses.append(module.loss(batches[index]).item())
            outputs.append(module(batches[index][:, :-1]).detach())
        assert logged["loss"] == pytest.approx(losses[1], rel=1e-5)
        assert logged["loss_gap"] == pytest.approx(losses[1] - losses[0], abs=1e-4)
        gaps.append(logged["loss_gap"])
        difference = outputs[1] - outputs[0]
        assert logged["prediction_distance"] == pytest.approx(difference.norm(dim=2).mean().item(), rel=1e-4)
        relative = difference.norm() / outputs[0].norm()
        assert logged["prediction_distance_relative"] == pytest.approx(relative.item(), rel=1e-4)
        after, twin = probe.model[index], probe.twins[index][0]
        squares = {name: (after[name] - twin[name]).square().sum().item() for name in after}
        moved = math.sqrt(sum((after[name] - start[name]).square().sum().item() for name in after))
        distance = math.sqrt(sum(squares.values()))
        core = math.sqrt(sum(value for name, value in squares.items() if name.startswith("core")))
        assert logged["weight_distance"] == pytest.approx(distance, rel=1e-4)
        assert logged["weight_distance/core"] == pytest.approx(core, rel=1e-4)
        assert logged["weight_distance_relative"] == pytest.approx(distance / moved, rel=1e-4)
        assert logged["step_time_ratio"] > 1
    assert max(map(abs, gaps)) > 1e-3

    metrics = shadowed(run.callback_metrics)
    assert metrics.keys() == {f"shadow/{name}" for name in TRAIN | VALIDATION}
    assert all(map(math.isfinite, metrics.values()))
    losses = [[m.loss(batch).item() for batch in evaluation] for m in (model, ours.twin)]
    assert metrics["shadow/val_loss"] == pytest.approx(np.mean(losses[1]), rel=1e-5)
    assert metrics["shadow/val_loss_gap"] == pytest.approx(np.mean(losses[1]) - np.mean(losses[0]), rel=1e-3)
    assert run.callback_metrics["val_loss"].item() == pytest.approx(np.mean(losses[0]), rel=1e-5)
    distances = [(ours.twin(b[:, :-1]) - model(b[:, :-1])).norm(dim=2).mean().item() for b in evaluation]
    assert metrics["shadow/val_prediction_distance"] == pytest.approx(np.mean(distances), rel=1e-4)
    final = math.sqrt(sum((v - weights(ours.twin)[n]).square().sum().item() for n, v in weights(model).items()))
    assert metrics["shadow/val_weight_distance"] == pytest.approx(final, rel=1e-4)
    (line,) = [values for _, values in logger.all if "shadow/val_loss" in values]
    assert {f"shadow/{name}" for name in VALIDATION} <= line.keys()


class Weighted(Noisy):
    """Its validation loss in one of the ways to give one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mean = how, MeanMetric()

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.how == "given":
            self.log("val_loss", loss, batch_size=1 + 7 * batch_idx)
        elif self.how == "returned":
            self.log("value", loss)
            return loss
        elif self.how == "both":
            self.log("val_loss", loss, batch_size=5 - batch_idx)
            return 2 * loss
        elif self.how == "object":
            self.mean.update(loss)
            self.log("val_loss", self.mean)
        elif self.how == "extracted":
            self.log_dict({"val/loss": loss, "other_loss": 3 * loss})
        return None


@pytest.mark.parametrize(
    ("how", "precision"),
    [("extracted", "32-true"), ("given", "32-true"), ("returned", "bf16-true"), ("both", "32-true")],
)
def test_batches_weigh_as_in_the_models_own_mean(how: str, precision: Any, tmp_path: Path) -> None:
    """The last one is smaller: to the bit the model's own validation loss."""
    model, whole, short = Weighted(how), FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    seed()
    run = trainer(tmp_path, whole, short, precision=precision, max_epochs=2)
    evaluation = DataLoader(Sequences(11, seed=1), batch_size=4)
    run.fit(model, sequences(3), evaluation)
    metrics = run.callback_metrics
    name = {"extracted": "val/loss", "returned": "value"}.get(how, "val_loss")
    assert metrics[f"shadow/k={WHOLE}/val_loss"] == metrics[name]
    assert metrics[f"shadow/k={WHOLE}/val_loss_gap"] == 0
    assert metrics["shadow/k=1/val_loss"] != metrics[name]
    assert metrics["shadow/k=1/val_loss_gap"].item() == pytest.approx(
        (metrics["shadow/k=1/val_loss"] - metrics[name]).item(), abs=1e-6
    )
    if precision == "32-true":
        model.eval(), short.twin.eval()
        with torch.no_grad():
            apart = [(short.twin(b[:, :-1]) - model(b[:, :-1])).norm(dim=2).mean().item() for b in evaluation]
        sizes = {"given": [1, 8, 15], "both": [5, 4, 3]}.get(how, [4, 4, 3])
        assert metrics["shadow/k=1/val_prediction_distance"].item() == pytest.approx(
            np.average(apart, weights=sizes), rel=1e-4
        )


@pytest.mark.parametrize("how", ["object", "not at all"])
def test_no_validation_loss(how: str, tmp_path: Path) -> None:
    with warned("logs no `val_loss`") as messages:
        run = fit(Weighted(how), tmp_path, FeedForwardShadowCallback(1))
    (message,) = messages
    assert message.endswith("Got none from Weighted.")
    assert "shadow/val_loss" not in run.callback_metrics
    assert run.callback_metrics["shadow/val_prediction_distance"] > 0


def test_predictions_of_a_given_function(tmp_path: Path) -> None:
    """Evaluated in evaluation mode, when they are logged and not before; running statistics stay."""
    calls: list[tuple[int, bool]] = []

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(FEATURES)
            self.cell = nn.LSTM(FEATURES, UNITS, 2, batch_first=True, dropout=0.2)

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.norm(x.mT).mT)

    def predict(module: Any, batch: Tensor) -> Tensor:
        calls.append((module.trainer.global_step, module.training))
        assert not torch.is_grad_enabled()
        return module(batch[:, :-1] + 0 * torch.rand(1))[..., 0, 0]

    def run(*callbacks: L.Callback) -> dict[str, Tensor]:
        seed()
        model = Noisy(Normed())
        metrics.update(fit(model, tmp_path, *callbacks, projection(), log_every_n_steps=5).callback_metrics)
        return state(model)

    metrics: dict[str, Tensor] = {}
    alone = run()
    assert equal(alone, run(FeedForwardShadowCallback(1, predictions=predict)))
    assert {step for step, _ in calls} == {5, 10, 15, 20, 4, 11, 18}  # log lines and validations
    assert not any(training for _, training in calls)
    assert metrics["shadow/prediction_distance"] > 0
    assert metrics["shadow/val_prediction_distance"] > 0
    assert equal(alone, run(FeedForwardShadowCallback(WHOLE, predictions=predict)))
    assert metrics["shadow/prediction_distance"] == metrics["shadow/val_prediction_distance"] == 0


def test_predictions_of_the_recurrent_layers(tmp_path: Path) -> None:
    """Where a step never calls its module."""

    class Direct(Recurrent):
        def loss(self, batch: Tensor) -> Tensor:
            return self.core(batch)[0].square().mean()

    ours, model, logger = FeedForwardShadowCallback(1), Direct("lstm", growth=0.0), Values()
    run = trainer(tmp_path, ours, logger=logger, log_every_n_steps=1)
    run.fit(model, sequences(1), sequences(1))
    with torch.no_grad():
        start, batch = Direct("lstm"), next(iter(sequences(1)))
        outputs = [start.core(batch)[0], truncate(start, 1).core(batch)[0]]
    expected = (outputs[1] - outputs[0]).norm(dim=2).mean().item()
    assert logger.lines("shadow/prediction_distance") == {0: pytest.approx(expected, rel=1e-4)}
    assert run.callback_metrics["shadow/val_prediction_distance"] > 0


def test_names_of_one_and_of_several(tmp_path: Path) -> None:
    run = fit(Noisy(), tmp_path, FeedForwardShadowCallback(1, name="a"), FeedForwardShadowCallback(1, name="b"))
    assert {"a/loss", "b/loss"} <= run.callback_metrics.keys()
    run = fit(Noisy(), tmp_path, FeedForwardShadowCallback(1), FeedForwardShadowCallback(2))
    assert {"shadow/k=1/loss", "shadow/k=2/val_loss"} <= run.callback_metrics.keys()
    assert "shadow/loss" not in run.callback_metrics


def test_monitored(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, monitor="shadow/val_weight_distance_relative")
    stop = EarlyStopping("shadow/val_loss", patience=99)
    fit(Noisy(), tmp_path, save, stop, FeedForwardShadowCallback(1))
    assert 0 < save.best_model_score < math.inf
    assert stop.best_score.isfinite()


def test_no_logging(tmp_path: Path) -> None:
    run = fit(Noisy(), tmp_path, FeedForwardShadowCallback(1), log_every_n_steps=0, limit_val_batches=0)
    assert not shadowed(run.callback_metrics)


def test_time_of_two_twins_is_not_counted_as_the_models(tmp_path: Path) -> None:
    class Slow(Recurrent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            until = now() + (0.02 if type(self.core) is nn.LSTM else 0.04)
            while now() < until:
                pass
            return super().training_step(batch, batch_idx)

    from time import perf_counter as now

    shadows = [FeedForwardShadowCallback(1), FeedForwardShadowCallback(2)]
    run = trainer(tmp_path, *shadows, log_every_n_steps=3)
    run.fit(Slow("lstm"), sequences(3))
    for window in (1, 2):
        assert 2 < run.callback_metrics[f"shadow/k={window}/step_time_ratio"] < 4.5


@pytest.mark.parametrize("others", [nothing, lambda: [projection()]])
def test_nothing_waits_for_the_device_between_log_lines(others: Any, tmp_path: Path) -> None:
    names = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero")

    def fetched(*shadows: L.Callback) -> list[int]:
        count, counts = 0, []

        def counting(original: Any) -> Any:
            def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                return original(self, *args, **kwargs)

            return method

        class Probe(L.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                counts.append(count)

        patches = [mock.patch.object(Tensor, name, counting(getattr(Tensor, name))) for name in names]
        run = trainer(tmp_path, *others(), *shadows, Probe(), log_every_n_steps=4)
        for patch in patches:
            patch.start()
        try:
            run.fit(Recurrent("lstm", growth=1.0), sequences(9))
        finally:
            for patch in patches:
                patch.stop()
        return [after - before for before, after in itertools.pairwise(counts)]

    alone, beside = fetched(), fetched(FeedForwardShadowCallback(1))
    twice = 2 if others() else 1  # the projection on a CPU asks whether weights are finite
    for step, (first, second) in enumerate(zip(alone, beside, strict=True), 1):
        if step % 4:
            assert second <= twice * first
        else:
            assert second > first


def test_predictions_that_are_no_tensor(tmp_path: Path) -> None:
    ours = FeedForwardShadowCallback(1, predictions=lambda module, batch: module.core(batch))
    with pytest.raises(TypeError, match=r"`predictions` must return a tensor\. Got tuple"):
        fit(Noisy(), tmp_path, ours)


def test_two_callbacks_with_one_name(tmp_path: Path) -> None:
    """Lightning refuses what it cannot save; the names of what is logged are ours to look after."""
    with pytest.raises(MisconfigurationException, match=r"must differ in `window` or `name`.* Got 2 with `window=1`"):
        fit(Noisy(), tmp_path, FeedForwardShadowCallback(1), FeedForwardShadowCallback(1, twin=Noisy))
    with pytest.raises(RuntimeError, match="FeedForwardShadowCallback"):
        trainer(tmp_path, FeedForwardShadowCallback(1), FeedForwardShadowCallback(1))
