"""What the twin has of its own: schedule, hooks, trainer, modes, metrics and projection."""

from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_stable import certify
from lightning_stable.callbacks import FeedForwardShadowCallback
from tests.callbacks.loggers import Values
from tests.callbacks.shadows import (
    RATE,
    WHOLE,
    BySteps,
    Loader,
    Noisy,
    Scheduled,
    adam,
    every_epoch,
    fit,
    one_cycle,
    plateau,
    projection,
    seed,
)
from tests.helpers import Recurrent, equal, sequences, trainer, weights


@pytest.mark.parametrize("make", [one_cycle, every_epoch])
def test_the_schedule_is_the_twins_own(make: Any, tmp_path: Path) -> None:
    """As many steps, on its own optimizer."""
    rates: tuple[list[float], list[float]] = ([], [])

    def note_model(run: Any, model: Any, optimizer: Any) -> None:
        rates[0].append(optimizer.param_groups[0]["lr"])

    def note_twin(run: Any, model: Any, *_: Any) -> None:
        twin = ours._run.twin.optimizer
        assert twin is not run.optimizers[0]
        rates[1].append(twin.param_groups[0]["lr"])  # of the step just made: schedules catch up before the next

    ours = FeedForwardShadowCallback(1)
    probe = L.pytorch.callbacks.LambdaCallback(on_before_optimizer_step=note_model, on_train_batch_end=note_twin)
    fit(Scheduled(make), tmp_path, ours, probe)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) >= 2


def test_own_hooks_keep_own_state(tmp_path: Path) -> None:
    """Every hook of the module is called on the twin as often as on the model, and nothing is logged by it."""

    class Counting(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.counts: dict[str, int] = {}

        def count(self, name: str) -> None:
            self.counts[name] = self.counts.get(name, 0) + 1

    names = [
        *(f"on_train_{what}" for what in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")),
        *(f"on_validation_{what}" for what in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")),
        *("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"),
        *("optimizer_zero_grad", "optimizer_step", "backward", "configure_gradient_clipping", "lr_scheduler_step"),
        *("training_step", "validation_step", "on_validation_model_eval", "on_validation_model_zero_grad"),
    ]

    def counted(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.count(name)
            return getattr(super(Counting, self), name)(*args, **kwargs)

        return hook

    for name in names:
        setattr(Counting, name, counted(name))

    def configure_optimizers(self: Any) -> Any:
        return every_epoch(adam(self.parameters()), None)

    Counting.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
    ours, model = FeedForwardShadowCallback(2), Counting()
    fit(model, tmp_path, ours, accumulate_grad_batches=2, num_sanity_val_steps=0)
    assert ours.twin.counts is not model.counts
    assert ours.twin.counts == model.counts
    assert model.counts["on_train_batch_start"] == 21
    assert set(names) <= model.counts.keys()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_global_step_in_every_hook(accumulate: int, tmp_path: Path) -> None:
    model, ours = BySteps(), FeedForwardShadowCallback(1)
    run = fit(model, tmp_path, ours, accumulate_grad_batches=accumulate)
    assert ours.twin.notes == model.notes
    assert model.notes[-1] == ("end", run.global_step)
    assert {hook for hook, _ in model.notes} == {"start", "step", "clip", "before", "after", "end"}


def test_user_code_that_reads_and_writes_its_trainer(tmp_path: Path) -> None:
    """The twin has optimizers, schedulers and metrics of its own, and cannot stop the run or write to its logger."""

    class Meddling(Scheduled):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.trainer.written = seen.setdefault(id(self), [])
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            assert optimizer.param_groups[0]["params"][0] is next(self.parameters())
            assert scheduler.optimizer is self.optimizers(use_pl_optimizer=False) is self.trainer.optimizers[0]
            assert self.trainer.lightning_module is self
            self.logger.experiment.add(id(self))
            self.trainer.written.append(self.trainer.callback_metrics.get("train_loss"))
            if self.core.__class__ is not nn.LSTM:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    class Experiment(Values):
        def __init__(self) -> None:
            super().__init__()
            self.writers: set[int] = set()

        @property
        def experiment(self) -> set[int]:
            return self.writers

    seen: dict[int, list[Any]] = {}
    logger, ours, model = Experiment(), FeedForwardShadowCallback(1), Meddling(every_epoch)
    run = fit(model, tmp_path, ours, logger=logger)
    assert logger.writers == {id(model)}
    assert run.global_step == 21
    first, second = seen[id(model)], seen[id(ours.twin)]
    assert len(first) == len(second) == 21
    assert first[1:] != second[1:]


def test_a_step_that_takes_its_batch_apart(tmp_path: Path) -> None:
    class Popping(Noisy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": super().training_step(batch.pop("x"), batch_idx), "more": 1}

        def validation_step(self, batch: Any) -> Any:
            return {"loss": self.loss(batch.pop("x"))}

    whole, model = FeedForwardShadowCallback(WHOLE), Popping()
    batches = [{"x": batch} for batch in sequences(3)]
    run = trainer(tmp_path, whole, log_every_n_steps=1)
    with mock.patch.object(Loader, "__iter__", side_effect=lambda: (dict(batch) for batch in batches)):
        run.fit(model, Loader(3), Loader(3))
    assert equal(weights(model), weights(whole.twin))
    assert run.callback_metrics["shadow/val_loss_gap"] == run.callback_metrics["shadow/loss_gap"] == 0
    assert run.callback_metrics["shadow/val_loss"] != 0


def test_modes_in_and_after_validation(tmp_path: Path) -> None:
    """The twin evaluates without dropout, and frozen parts stay in evaluation."""
    modes: list[tuple[bool, ...]] = []

    class Frozen(Noisy):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            modes.append((type(self.core) is nn.LSTM, self.training, self.core.training, torch.is_grad_enabled()))
            super().validation_step(batch, batch_idx)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            modes.append((type(self.core) is nn.LSTM, self.training, self.core.training, torch.is_grad_enabled()))

    model = Frozen()
    model.core.eval()
    fit(model, tmp_path, FeedForwardShadowCallback(1), num_sanity_val_steps=0)
    for own in (True, False):
        assert [m[1:] for m in modes if m[0] is own].count((True, False, True)) == 21
        assert [m[1:] for m in modes if m[0] is own].count((False, False, False)) == 9
    assert len(modes) == 60


@pytest.mark.parametrize(("name", "window"), [("mean", 1), ("mean", WHOLE), ("val_loss", 1)])
def test_several_validation_loaders_and_metric_objects(name: str, window: int, tmp_path: Path) -> None:
    """The plateau scheduler of the twin follows the twin's own metric, under the name with the loader's index."""
    seen: list[tuple[bool, float]] = []

    class Metrics(Noisy):
        def __init__(self) -> None:
            super().__init__(optimizer=adam)
            self.means = nn.ModuleList([MeanMetric(), MeanMetric()])

        def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.means[dataloader_idx].update(self.loss(batch))
            self.log("mean", self.means[dataloader_idx], metric_attribute=f"means.{dataloader_idx}")
            self.log_dict({"val_loss": self.loss(batch)})

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            seen.append((type(self.core) is nn.LSTM, float(metric)))
            super().lr_scheduler_step(scheduler, metric)

        def configure_optimizers(self) -> Any:
            return plateau(f"{name}/dataloader_idx_1")(adam(self.parameters()), None)

    seed()
    ours = FeedForwardShadowCallback(window)
    run = trainer(tmp_path, ours, max_epochs=3)
    run.fit(Metrics(), sequences(3), [sequences(2), sequences(2, seed=2)])
    first, second = ([value for own, value in seen if own is which] for which in (True, False))
    assert len(first) == 3
    assert len(second) == 3
    assert (first == second) is (window == WHOLE)
    assert run.callback_metrics["shadow/val_loss"] != 0


@pytest.mark.parametrize(("cell", "every"), [("lstm", 1), ("gru", 2), ("rnn", 2)])
def test_the_twin_is_projected_too(cell: str, every: int, tmp_path: Path) -> None:
    rates: list[float] = []

    def note(*_: Any) -> None:
        rates.append(certify(ours.twin, input_bound=2.0).rate)

    ours = FeedForwardShadowCallback(1)
    probe = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=note)
    model = Recurrent(cell, growth=1.0)
    trainer(tmp_path, ours, projection(every_n_steps=every, input_bound=2.0), probe).fit(model, sequences(6))
    assert all(rate <= RATE for rate in rates[every - 1 :: every])
    assert every == 1 or not all(rate <= RATE for rate in rates)
    rates.clear()
    trainer(tmp_path, ours, probe).fit(Recurrent(cell, growth=1.0), sequences(6))
    assert max(rates) > 1
