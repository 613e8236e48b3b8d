"""The twin beside the model under everything a Trainer does; two processes have a file of their own."""

import copy
import itertools
import math
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_stable import certify
from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from lightning_stable.stability.inputs.watch import Hook, _nothing
from lightning_stable.truncation import Windowed, truncate
from tests.callbacks.shadows import WHOLE, AfterBatch, Loader, Noisy, seed, state
from tests.helpers import FEATURES, UNITS, Recurrent, Sequences, equal, on_gpu, sequences, trainer, weights

RATE = 0.9


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


def half(**kwargs: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", **kwargs))


class Sometimes(Noisy):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return None if batch_idx in (1, 4) else super().training_step(batch, batch_idx)


class Overflow(Noisy):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 2 else 1.0)


class OwnClipping(Noisy):
    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        assert gradient_clip_algorithm == "value"
        nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val / 2)


class Compiled(Noisy):
    """Two of its modules, and itself, compiled by ``module.compile()``."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.core, self.head, self):
            module.compile(backend="eager")


class BySteps(Noisy):
    """Its loss and learning rate follow ``global_step``, which its hooks write down."""

    def note(self, hook: str) -> int:
        assert self.global_step == self.trainer.global_step
        self.notes = [*getattr(self, "notes", []), (hook, self.global_step)]
        return self.global_step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) * (1 + self.note("step"))

    def configure_gradient_clipping(self, optimizer: Any, **_: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1 / (1 + self.note("clip")))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + self.note("before"))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.param_groups[0]["weight_decay"] = 0.01 * self.note("after")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.note("start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("end")


class Scheduled(Noisy):
    """Its schedulers, made from an optimizer and the trainer, in one of the forms Lightning takes."""

    def __init__(self, make: Callable[[Any, Any], Any], **kwargs: Any) -> None:
        super().__init__(optimizer=adam, **kwargs)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(adam(self.parameters()), self.trainer)


def one_cycle(optimizer: Any, run: Any) -> Any:
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=run.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def every_second_step(optimizer: Any, run: Any) -> Any:
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


def every_epoch(optimizer: Any, run: Any) -> Any:
    return [optimizer], [lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def two_schedulers(optimizer: Any, run: Any) -> Any:
    step = {"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}
    return [optimizer], [step, lr_scheduler.CosineAnnealingLR(optimizer, 3)]


def chained(optimizer: Any, run: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.7)]
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.ChainedScheduler(parts)}


def plateau(monitor: str) -> Callable[[Any, Any], Any]:
    def make(optimizer: Any, run: Any) -> Any:
        # No value is good enough: the rate falls at every epoch after the first.
        scheduler = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e6, threshold_mode="abs"
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": monitor}

    return make


def projection(**kwargs: Any) -> StabilityProjectionCallback:
    return StabilityProjectionCallback(**{"rate": RATE, **kwargs})


Setting = tuple[Callable[[], L.LightningModule], dict[str, Any], Callable[[], list[L.Callback]]]


def nothing() -> list[L.Callback]:
    return []


SETTINGS: dict[str, Setting] = {
    "dropout": (Noisy, {}, nothing),
    "rnn": (lambda: Noisy("rnn"), {}, nothing),
    "gru": (lambda: Noisy("gru", bidirectional=True), {}, nothing),
    "adam": (lambda: Noisy(optimizer=adam), {}, nothing),
    "accumulate": (lambda: Noisy(optimizer=adam), {"accumulate_grad_batches": 3}, nothing),
    "clip norm": (Noisy, {"gradient_clip_val": 0.1}, nothing),
    "clip value": (Noisy, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, nothing),
    "own clipping": (OwnClipping, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, nothing),
    "bf16-mixed": (lambda: Noisy(optimizer=adam), {"precision": "bf16-mixed"}, nothing),
    "bf16-true": (Noisy, {"precision": "bf16-true"}, nothing),
    "64-true": (Noisy, {"precision": "64-true"}, nothing),
    "lbfgs": (lambda: Noisy(optimizer=lbfgs, growth=0.0), {}, nothing),
    "none": (lambda: Sometimes(optimizer=adam), {}, nothing),
    "none, accumulate": (lambda: Sometimes(optimizer=adam), {"accumulate_grad_batches": 3}, nothing),
    "one cycle": (lambda: Scheduled(one_cycle), {}, nothing),
    "frequency": (lambda: Scheduled(every_second_step), {}, nothing),
    "epochs": (lambda: Scheduled(every_epoch), {}, nothing),
    "two": (lambda: Scheduled(two_schedulers), {"accumulate_grad_batches": 2}, nothing),
    "chained": (lambda: Scheduled(chained), {}, nothing),
    "plateau": (lambda: Scheduled(plateau("val_loss")), {}, nothing),
    "plateau train": (lambda: Scheduled(plateau("train_loss_epoch")), {}, nothing),
    "projection": (lambda: Noisy(growth=1.0), {}, lambda: [projection()]),
    "rnn projection": (lambda: Noisy("rnn", growth=1.0), {}, lambda: [projection(every_n_steps=3)]),
    "recorded": (lambda: Noisy(growth=1.0, bounded=False), {"precision": "bf16-mixed"}, lambda: [projection()]),
    "rarely": (lambda: Noisy(growth=1.0, bounded=False), {}, lambda: [projection(every_n_steps=3)]),
    "compiled in place": (Compiled, {"accumulate_grad_batches": 3}, nothing),
    "by step": (lambda: BySteps(optimizer=adam), {"accumulate_grad_batches": 2}, nothing),
}


def data() -> tuple[Any, Any]:
    return sequences(7), sequences(3, seed=1, scale=2.0)


def fit(model: L.LightningModule, path: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """Three epochs of seven batches, validated in the middle of each."""
    seed()
    defaults = {"max_epochs": 3, "val_check_interval": 4, "log_every_n_steps": 2}
    run = trainer(path, *callbacks, **(defaults | kwargs))
    run.fit(model, *data())
    return run


@contextmanager
def warned(about: str) -> Iterator[list[str]]:
    """Every warning, also those that are repeated."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages.extend(str(warning.message) for warning in caught if about in str(warning.message))


def plain(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in metrics.items() if not name.startswith("shadow")}


def shadowed(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items() if name.startswith("shadow")}


# The model's own run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_does_not_notice(setting: str, tmp_path: Path) -> None:
    """Weights after every batch, what it logs, and all random generators."""
    make, settings, others = SETTINGS[setting]

    def run(*shadows: L.Callback) -> tuple[Any, ...]:
        probe, model = AfterBatch(), make()
        metrics = plain(fit(model, tmp_path, *shadows, *others(), probe, **settings).callback_metrics)
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return probe.model, metrics, torch.get_rng_state(), random.getstate(), numpy, model

    # To make another module draws numbers, too.
    alone, beside = run(), run(FeedForwardShadowCallback(1), FeedForwardShadowCallback(2, twin=make))
    assert len(alone[0]) == 21
    assert all(map(equal, alone[0], beside[0]))
    assert equal(alone[1], beside[1])
    assert torch.equal(alone[2], beside[2])
    assert alone[3:5] == beside[3:5]
    model = beside[-1]
    assert "log" not in vars(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_shadow_before_and_after_other_callbacks(tmp_path: Path) -> None:
    results = []
    for first in (True, False):
        ours, other = FeedForwardShadowCallback(1), projection(every_n_steps=3)
        model = Noisy(growth=1.0, bounded=False)
        fit(model, tmp_path, *((ours, other) if first else (other, ours)))
        results.append((weights(model), weights(ours.twin)))
    assert all(map(equal, *results))


# The twin's run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [*SETTINGS, "16-mixed", "16-mixed fused", "16-mixed accumulate"])
def test_a_twin_that_sees_everything_is_the_model(setting: str, tmp_path: Path) -> None:
    """After every batch; beside it a short window is something else, also with the same masks."""
    halves: dict[str, Setting] = {
        "16-mixed": (lambda: Overflow("gru", optimizer=adam), {"gradient_clip_val": 0.1}, nothing),
        "16-mixed fused": (
            lambda: Overflow("gru", optimizer=lambda p: torch.optim.Adam(p, lr=0.05, fused=True)),
            {},
            lambda: [projection()],
        ),
        "16-mixed accumulate": (lambda: Overflow("gru", optimizer=adam), {"accumulate_grad_batches": 3}, nothing),
    }
    make, settings, others = (SETTINGS | halves)[setting]
    if setting in halves:
        settings = settings | {"plugins": [half(init_scale=2.0, growth_interval=4)]}
    whole, short = FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    model, probe = make(), AfterBatch(whole, short)
    start = state(model)
    run = fit(model, tmp_path, whole, *others(), short, probe, **settings)
    assert len(probe.model) == 21
    for ours, (twin, other) in zip(probe.model, probe.twins, strict=True):
        assert equal(ours, twin)
        assert not equal(ours, other) or equal(ours, start)
    assert equal(state(model), state(whole.twin))
    assert not equal(start, state(model))
    exact = {name: value for name, value in shadowed(run.callback_metrics).items() if f"k={WHOLE}/" in name}
    assert {name for name, value in exact.items() if value != 0} <= {
        f"shadow/k={WHOLE}/{name}" for name in ("loss", "val_loss", "step_time_ratio")
    }
    assert f"shadow/k={WHOLE}/val_loss_gap" in exact


@pytest.mark.parametrize("make", [one_cycle, every_second_step, every_epoch, plateau("val_loss")])
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


@pytest.mark.parametrize("name", ["mean", "val_loss"])
@pytest.mark.parametrize("window", [1, WHOLE])
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


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("every", [1, 2])
def test_the_twin_is_projected_too(cell: str, every: int, tmp_path: Path) -> None:
    rates: list[float] = []

    def note(*_: Any) -> None:
        rates.append(certify(ours.twin, input_bound=2.0).rate)

    ours = FeedForwardShadowCallback(1)
    probe = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=note)
    model = Recurrent(cell, growth=1.0)
    trainer(tmp_path, ours, projection(every_n_steps=every, input_bound=2.0), probe).fit(model, sequences(6))
    assert [rate <= RATE for rate in rates] == [step % every == 0 for step in range(1, 7)]
    rates.clear()
    trainer(tmp_path, ours, probe).fit(Recurrent(cell, growth=1.0), sequences(6))
    assert max(rates) > 1


def test_a_checkpoint_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """A callback before ours saves when the model has made its step and the twin has not."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def settings() -> list[L.Callback]:
        return [projection(every_n_steps=3), FeedForwardShadowCallback(WHOLE)]

    model, callbacks = Noisy(growth=1.0), settings()
    fit(model, tmp_path, Save(), *callbacks, enable_checkpointing=True)
    assert equal(weights(model), weights(callbacks[1].twin))
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    saved = content["callbacks"][callbacks[1].state_key]["checkpoint"]["state_dict"]
    assert equal(saved, content["state_dict"])


# Given twins ----------------------------------------------------------------------------------------------------------


class Uncopyable(Noisy):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


@pytest.mark.parametrize("kind", ["module", "factory", "class", "windowed"])
def test_given_twin(kind: str, tmp_path: Path) -> None:
    """It trains as a copy would, whatever its own weights were."""

    def make() -> Noisy:
        twin = Uncopyable()
        with torch.no_grad():
            for value in twin.parameters():
                value.add_(torch.rand(()))
        return twin

    given = {"module": make(), "factory": make, "class": Uncopyable, "windowed": truncate(Noisy(), 3)}[kind]
    copied, model = FeedForwardShadowCallback(1), Noisy()
    ours = FeedForwardShadowCallback(1, twin=given, name="given")
    fit(model, tmp_path, copied, ours)
    assert isinstance(ours.twin.core, Windowed)
    assert equal(weights(copied.twin), weights(ours.twin))
    assert not equal(weights(copied.twin), weights(model))
    assert (ours.twin is given) == (kind in ("module", "windowed"))


def test_given_twin_is_set_up_as_the_model_is(tmp_path: Path) -> None:
    class Late(Noisy):
        def setup(self, stage: str) -> None:
            self.extra = nn.Linear(2, 2)

        def configure_model(self) -> None:
            self.more = nn.Linear(2, 2)

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            extra = sum(p.sum() for m in (self.extra, self.more) for p in m.parameters())
            return super().training_step(batch, batch_idx) + extra

    model, ours = Late(), FeedForwardShadowCallback(WHOLE, twin=Late)
    fit(model, tmp_path, ours, precision="64-true")
    assert equal(weights(model), weights(ours.twin))
    assert ours.twin.more.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        (lambda: Noisy(num_layers=1), r"first mismatch 'core\.weight_ih_l1': shape \(20, 5\) in the model, None in"),
        (lambda: Noisy(num_layers=3), r"first mismatch 'core\.weight_ih_l2': shape None in the model, \(20, 5\) in"),
        (
            lambda: Noisy("gru"),
            r"first mismatch 'core\.weight_ih_l0': shape \(20, 3\) in the model, \(15, 3\) in the t",
        ),
        (lambda: nn.Linear(1, 1), r"`twin` must be a LightningModule of its own.* Got Linear"),
        (lambda window: Noisy(), r"`twin` must be a LightningModule of its own.* which raised TypeError: .*'window'"),
    ],
)
def test_twin_of_another_architecture(twin: Any, message: str, tmp_path: Path) -> None:
    model = Noisy()
    with pytest.raises(MisconfigurationException, match=message):
        fit(model, tmp_path, FeedForwardShadowCallback(1, twin=twin))
    assert not model._forward_hooks


def test_the_model_as_its_own_twin(tmp_path: Path) -> None:
    model = Noisy()
    with pytest.raises(MisconfigurationException, match="Got the model itself"):
        fit(model, tmp_path, FeedForwardShadowCallback(1, twin=model))


# Kill and resume ------------------------------------------------------------------------------------------------------


class Seeded(Scheduled):
    """Its random numbers depend on the batch alone, as Lightning saves no generators."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        L.seed_everything(100 * self.trainer.current_epoch + batch_idx, verbose=False)
        super().on_train_batch_start(batch, batch_idx)
        self.batches = getattr(self, "batches", 0) + 1

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        # The twins' scalers have a history of their own.
        overflows = batch_idx == 1 and isinstance(self.core, Windowed) and str(self.trainer.precision) == "16-mixed"
        return super().training_step(batch, batch_idx) * (float("inf") if overflows else 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.batches
        checkpoint["renamed"] = checkpoint.pop("state_dict")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches = checkpoint["batches"]
        checkpoint["state_dict"] = checkpoint.pop("renamed")


@pytest.mark.parametrize(("stop", "late"), [("middle", False), ("middle", True), ("end", False), ("after", False)])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (two_schedulers, {}),
        (every_epoch, {"accumulate_grad_batches": 3}),
        (plateau("val_loss"), {}),
        (two_schedulers, {"half": True}),
        (every_epoch, {"project": 2}),
    ],
    ids=["steps", "epochs", "plateau", "half", "project"],
)
def test_resumed_equals_uninterrupted(
    make: Any, settings: dict[str, Any], stop: str, late: bool, tmp_path: Path
) -> None:
    """Bit for bit: model, both twins, and all that is in the checkpoint."""
    settings = dict(settings)
    with_half, every = settings.pop("half", False), settings.pop("project", 0)

    class Late(SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    def run(folder: str, ckpt: Path | None = None, **kwargs: Any) -> tuple[Any, ...]:
        core = "gru" if with_half else "lstm"  # of which there is no half-precision form on a CPU
        model = Seeded(make, core=core, growth=1.0 if every else 0.0, bounded=not every)
        shadows = [FeedForwardShadowCallback(1), FeedForwardShadowCallback(2)]
        save = ModelCheckpoint(
            tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=None if stop == "end" else 4
        )
        others = [projection(every_n_steps=every)] if every else []
        if with_half:
            kwargs["plugins"] = [half(init_scale=2.0, growth_interval=3)]
        if late and ckpt is not None:
            kwargs["strategy"] = Late("cpu")
        seed()
        fitting = trainer(tmp_path, *shadows, *others, save, **({"max_epochs": 3} | settings | kwargs))
        fitting.fit(model, Loader(6), sequences(2), ckpt_path=ckpt)
        if folder == "killed":
            fitting.save_checkpoint(tmp_path / "killed" / "after.ckpt")
        return fitting, model, *shadows

    if stop != "after" and "plateau" in make.__qualname__:
        pytest.skip("Lightning itself does not resume these schedulers exactly: it leaves out the next epoch's step")
    steps = -(-6 // settings.get("accumulate_grad_batches", 1))
    killed = run("killed", **({"max_epochs": 2} if stop == "after" else {}))
    name = {"middle": f"step={8 if steps == 6 else 4}", "end": f"step={steps}", "after": "after"}[stop]
    whole = run("whole")
    resumed = run("resumed", tmp_path / "killed" / f"{name}.ckpt")
    assert equal(state(resumed[1]), state(whole[1]))
    for first, second in zip(resumed[2:], whole[2:], strict=True):
        assert equal(state(first.twin), state(second.twin))
        assert first.twin.batches == second.twin.batches == 18
        ours, theirs = first.state_dict(), second.state_dict()
        for values in (ours, theirs):
            assert values.pop("values")
        assert str(ours) == str(theirs)
        assert not equal(state(first.twin), state(resumed[1]))
    assert not equal(state(resumed[2].twin), state(resumed[3].twin))
    assert killed[0].global_step
    assert not resumed[0].callback_metrics["shadow/k=1/val_weight_distance_relative"].isnan()


def test_callbacks_have_states_of_their_own(tmp_path: Path) -> None:
    shadows = [
        FeedForwardShadowCallback(1),
        FeedForwardShadowCallback(2),
        FeedForwardShadowCallback(1, name="other"),
        FeedForwardShadowCallback(1, name="given", twin=Noisy),
    ]
    run = fit(Noisy(), tmp_path, *shadows)
    run.save_checkpoint(tmp_path / "model.ckpt")
    states = torch.load(tmp_path / "model.ckpt", weights_only=True)["callbacks"]
    assert set(states) == {shadow.state_key for shadow in shadows}
    for shadow in shadows:
        assert equal(states[shadow.state_key]["checkpoint"]["state_dict"], shadow.twin.state_dict())


def test_a_checkpoint_from_before_the_callback(tmp_path: Path) -> None:
    """The twin then starts where the model stands, with its optimizer and schedule."""
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Seeded(every_epoch), Loader(6))
    run.save_checkpoint(tmp_path / "model.ckpt")
    model, ours = Seeded(every_epoch), FeedForwardShadowCallback(WHOLE)
    run = trainer(tmp_path, ours, max_epochs=3)
    run.fit(model, Loader(6), ckpt_path=tmp_path / "model.ckpt")
    assert run.global_step == 18
    assert equal(weights(model), weights(ours.twin))


def test_two_fits_with_one_callback(tmp_path: Path) -> None:
    model, ours = Noisy(optimizer=adam), FeedForwardShadowCallback(WHOLE)
    run = fit(model, tmp_path, ours)
    first = ours.twin
    run.fit_loop.max_epochs = 4
    run.fit(model, *data())
    assert ours.twin is not first
    assert equal(weights(ours.twin), weights(model))
    assert not equal(weights(first), weights(model))
    fit(Noisy("gru"), tmp_path, ours)
    assert isinstance(ours.twin.core, nn.GRU)


@pytest.mark.parametrize("what", ["fit", "validate", "sanity check"])
def test_nothing_is_lost_where_nothing_is_trained(what: str, tmp_path: Path) -> None:
    """A state that was loaded is saved again."""

    class Fails(Seeded):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            raise RuntimeError("as planned")

    def run(epochs: int, ckpt: str | None = None, kind: type[Seeded] = Seeded) -> tuple[L.Trainer, Any, Any]:
        model, ours = kind(every_epoch), FeedForwardShadowCallback(1)
        fitting = trainer(tmp_path, ours, OnExceptionCheckpoint(tmp_path, "exception"), max_epochs=epochs)
        if what == "validate" and epochs == 1 and ckpt:
            fitting.validate(model, sequences(2), ckpt_path=tmp_path / ckpt, verbose=False)
        else:
            fitting.fit(model, Loader(6), sequences(2), ckpt_path=ckpt and tmp_path / ckpt)
        return fitting, model, ours

    run(1)[0].save_checkpoint(tmp_path / "first.ckpt")
    if what == "sanity check":
        with pytest.raises(RuntimeError, match="as planned"):
            run(2, "first.ckpt", Fails)
        (tmp_path / "exception.ckpt").rename(tmp_path / "again.ckpt")
    else:
        run(1, "first.ckpt")[0].save_checkpoint(tmp_path / "again.ckpt")
    first, again = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("first", "again"))
    assert str(again["callbacks"]) == str(first["callbacks"])
    if what == "fit":
        whole, resumed = run(2)[-1], run(2, "again.ckpt")[-1]
        assert equal(state(resumed.twin), state(whole.twin))


class Undetached(Noisy):
    """Keeps states with their history, detached at the beginning of the next step only."""

    kept: Any = None

    def loss(self, batch: Tensor) -> Tensor:
        before = None if self.kept is None else tuple(value.detach() for value in self.kept["now"][0])
        output, after = self.core(batch, before)
        if self.training:
            self.kept = {"now": [after]}
        return self.head(output).square().mean()


def test_a_state_with_history_is_copied(tmp_path: Path) -> None:
    model, ours = Undetached(), FeedForwardShadowCallback(WHOLE)
    run = fit(model, tmp_path, ours)
    run.fit_loop.max_epochs = 4
    run.fit(model, *data())
    assert equal(weights(ours.twin), weights(model))
    assert model.kept["now"][0][0].grad_fn is not None


# A model that holds on to itself --------------------------------------------------------------------------------------


class Closed(Noisy):
    """Calls its recurrence in another way."""

    run: Any = None
    act: Any = None

    def __init__(self, how: str = "") -> None:
        super().__init__()
        core = self.core
        # What a copy has is its own only where it takes it from `self`.
        self.run = {
            "layer": lambda x: self.core(x),
            "forward": lambda x: core.forward(x),
            "bound": self.core.forward,
        }.get(how, core)
        if how == "hook":
            core.register_forward_hook(lambda module, args, output: setattr(self, "act", output[0]))

    def forward(self, x: Tensor) -> Tensor:
        output, _ = (self.run or self.core)(x)
        return self.head(output if self.act is None else self.act)


class ClosedInValidation(Closed):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.core if self.training or self.run is None else self.run)(x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Closed("layer"), "a call of its LSTM"),
        (lambda: Closed("forward"), "a gradient of 'core.weight_ih_l0'"),
        (lambda: Closed("hook"), "a new value of 'act'"),
        (lambda: ClosedInValidation("layer"), "a call of its LSTM"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_closures_over_the_model(make: Any, message: str, accumulate: int, tmp_path: Path) -> None:
    """A copy of them still works on the model; one that is made anew does not."""
    model, whole = make(), FeedForwardShadowCallback(WHOLE)
    settings = {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0}
    with pytest.raises(MisconfigurationException, match=rf"closes over .* pass `twin=`.* Got {message}"):
        fit(model, tmp_path, whole, **settings)
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert not hooks
    alone, model, given = make(), make(), FeedForwardShadowCallback(WHOLE, twin=make)
    fit(alone, tmp_path, **settings)
    fit(model, tmp_path, given, **settings)
    assert equal(weights(alone), weights(model))
    assert equal(weights(model), weights(given.twin))


@pytest.mark.parametrize("twin", [None, lambda: Closed("bound")])
def test_a_kept_method_has_no_window(twin: Any, tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"call the layer instead\. Got a kept `forward` of WindowedLSTM"
    ):
        fit(Closed("bound"), tmp_path, FeedForwardShadowCallback(1, twin=twin))


def test_a_kept_layer_is_the_copys_own(tmp_path: Path) -> None:
    model, whole, short = Closed(), FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    fit(model, tmp_path, whole, short)
    assert equal(weights(model), weights(whole.twin))
    assert not equal(weights(model), weights(short.twin))


def test_a_twin_may_share_what_is_frozen(tmp_path: Path) -> None:
    shared = nn.Linear(FEATURES, FEATURES).requires_grad_(False)

    class Sharing(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.shared = shared

        def loss(self, batch: Tensor) -> Tensor:
            return super().loss(self.shared(batch))

    model, whole = Sharing(), FeedForwardShadowCallback(WHOLE, twin=Sharing)
    fit(model, tmp_path, whole)
    assert equal(weights(model), weights(whole.twin))


# A model that changes what it is given --------------------------------------------------------------------------------


class InPlace(Noisy):
    """Masks inputs without a copy, and its own batch alone."""

    where = "training_step"

    def change(self, batch: Any, where: str) -> Tensor:
        if where == self.where:
            batch["x"].masked_fill_(torch.rand(batch["x"].shape) < 0.2, 0.0).mul_(0.9)
        return batch["x"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(self.change(batch, "training_step"), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(self.change(batch, "validation_step"), batch_idx)


class InValidation(InPlace):
    where = "validation_step"


@pytest.mark.parametrize("make", [InPlace, InValidation])
def test_batches_changed_in_place(make: Any, tmp_path: Path) -> None:
    """One warning; the twin is right from the second batch on, and the model's data stay the model's."""

    def run(*shadows: L.Callback) -> tuple[dict[str, Tensor], dict[str, float]]:
        seed()
        # Kept between the epochs: a change by the twin would come back to the model.
        batches, others = ([{"x": batch.clone()} for batch in loader] for loader in data())
        model = make()
        fitting = trainer(tmp_path, *shadows, max_epochs=3, num_sanity_val_steps=0, log_every_n_steps=1)
        fitting.fit(model, DataLoader(batches, batch_size=None), DataLoader(others, batch_size=None))
        return state(model), fitting.callback_metrics

    alone, _ = run()
    shadow = FeedForwardShadowCallback(WHOLE)
    with warned("changes its batches in place") as messages:
        beside, metrics = run(shadow, FeedForwardShadowCallback(1))
    assert equal(alone, beside)
    assert len(messages) == 2
    assert all(message.endswith("Got a change in batch 0.") for message in messages)
    if make is InValidation:
        assert equal(beside, state(shadow.twin))
        assert metrics[f"shadow/k={WHOLE}/val_loss_gap"] == 0


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    with warned("") as messages:
        fit(Noisy(), tmp_path, FeedForwardShadowCallback(1))
    assert not [message for message in messages if "in place" in message or "FeedForwardShadow" in message]


# Finetuning -----------------------------------------------------------------------------------------------------------


class Freezing(Noisy):
    """Optimizes what is not frozen."""

    def configure_optimizers(self) -> Any:
        return adam([p for p in self.parameters() if p.requires_grad])


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.head)

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.head, optimizer, lr=0.02)


class UnfreezeAlone(L.Callback):
    """What it unfreezes is in the optimizer from the start."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        module.head.requires_grad_(False)

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        module.head.requires_grad_(trainer.current_epoch > 0)


@pytest.mark.parametrize("make", [lambda: Freezing(optimizer=adam), lambda: Noisy(optimizer=adam)])
@pytest.mark.parametrize("first", [True, False])
def test_finetuning_is_followed(make: Any, first: bool, tmp_path: Path) -> None:
    model, whole, short = make(), FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    tuning = Unfreeze() if isinstance(model, Freezing) else UnfreezeAlone()
    start = weights(model)
    fit(model, tmp_path, *((tuning, whole, short) if first else (whole, short, tuning)))
    assert not torch.equal(start["head.weight"], model.head.weight)
    assert equal(weights(model), weights(whole.twin))
    assert not equal(weights(model), weights(short.twin))


def test_finetuning_is_resumed(tmp_path: Path) -> None:
    """The twin's optimizer has the groups that the model's has then, whatever Lightning itself leaves frozen."""

    def run(epochs: int, ckpt: Path | None = None) -> tuple[L.Trainer, Any, Any]:
        model, whole = Freezing(optimizer=adam), FeedForwardShadowCallback(WHOLE)
        fitting = trainer(tmp_path, Unfreeze(), whole, max_epochs=epochs)
        fitting.fit(model, Loader(4), ckpt_path=ckpt)
        return fitting, model, whole.twin

    run(2)[0].save_checkpoint(tmp_path / "model.ckpt")
    resumed, model, twin = run(3, tmp_path / "model.ckpt")
    assert resumed.global_step == 12
    assert len(resumed.optimizers[0].param_groups) == 2
    assert equal(weights(model), weights(twin))


class Growing(Noisy):
    """Gets a layer in the second epoch."""

    def __init__(self, optimized: bool) -> None:
        super().__init__(optimizer=adam)
        self.optimized = optimized

    def on_train_epoch_start(self) -> None:
        if self.trainer.current_epoch == 1:
            self.late = nn.Linear(2, 2)
            if self.optimized:
                self.trainer.optimizers[0].add_param_group({"params": list(self.late.parameters())})


@pytest.mark.parametrize(("optimized", "steps"), [(True, 7), (False, 8)])
def test_parameters_that_come_later(optimized: bool, steps: int, tmp_path: Path) -> None:
    """Noticed at once by the optimizer, or where weights are compared."""
    model = Growing(optimized)
    with pytest.raises(MisconfigurationException, match=r"must not be added, .* Got a change of 'late\.weight'"):
        fit(model, tmp_path, FeedForwardShadowCallback(WHOLE), limit_val_batches=0)
    assert model.trainer.global_step == steps


def test_a_parameter_that_joins_a_group(tmp_path: Path) -> None:
    class Joining(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["params"].extend(module.head.parameters())

    model = Freezing()
    model.head.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"in groups of their own\. Got groups of \[10\] .* \[8\] in"):
        fit(model, tmp_path, FeedForwardShadowCallback(WHOLE), Joining())


# Logging --------------------------------------------------------------------------------------------------------------


class Values(Logger):
    name, version = "values", "0"

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.all.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def lines(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.all if name in values}


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


@pytest.mark.parametrize("how", ["extracted", "given", "returned", "both"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
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
    assert equal(run(), run(FeedForwardShadowCallback(1, predictions=predict)))
    assert {step for step, _ in calls} == {5, 10, 15, 20, 4, 11, 18}  # log lines and validations
    assert not any(training for _, training in calls)
    assert metrics["shadow/prediction_distance"] > 0
    assert metrics["shadow/val_prediction_distance"] > 0
    assert equal(run(), run(FeedForwardShadowCallback(WHOLE, predictions=predict)))
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


# Afterwards -----------------------------------------------------------------------------------------------------------


def test_the_twin_is_an_ordinary_module_afterwards(tmp_path: Path) -> None:
    ours, model = FeedForwardShadowCallback(1), Noisy()
    assert ours.twin is None
    run = fit(model, tmp_path, ours)
    with pytest.raises(RuntimeError, match="not attached"):
        _ = ours.twin.trainer
    assert "log" not in vars(ours.twin)
    (values,) = trainer(tmp_path).test(ours.twin, sequences(), verbose=False)
    (others,) = trainer(tmp_path).test(model, sequences(), verbose=False)
    assert values["test_loss"] != others["test_loss"]
    fresh = Noisy()
    fresh.load_state_dict(ours.twin.state_dict())
    assert equal(weights(truncate(fresh, 1)), weights(ours.twin))
    assert run.lightning_module is model
    before = weights(ours.twin)
    run.validate(model, sequences(), verbose=False)
    run.test(model, sequences(), verbose=False)
    assert equal(before, weights(ours.twin))


@pytest.mark.parametrize("where", ["training_step", "validation_step", "on_validation_epoch_end"])
@pytest.mark.parametrize("who", ["model", "twin"])
def test_exceptions_leave_nothing_behind(where: str, who: str, tmp_path: Path) -> None:
    class Failing(Noisy):
        fails = True

        def fail(self, name: str) -> None:
            own = type(self.core) is nn.LSTM
            if self.fails and name == where and own == (who == "model") and not self.trainer.sanity_checking:
                raise RuntimeError("as planned")

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            if batch_idx == 5:
                self.fail("training_step")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.fail("validation_step")

        def on_validation_epoch_end(self) -> None:
            self.fail("on_validation_epoch_end")

    model, shadows = Failing(), [FeedForwardShadowCallback(1), FeedForwardShadowCallback(WHOLE)]
    with pytest.raises(RuntimeError, match="as planned"):
        fit(model, tmp_path, *shadows, projection(), OnExceptionCheckpoint(tmp_path))
    assert "log" not in vars(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for hooks in ((*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in shadows[0].twin.modules()):
        assert all(isinstance(hook, Hook) and hook._function is _nothing for hook in hooks)  # of the model it copied
    assert "log" not in vars(shadows[0].twin)
    saved = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["callbacks"]
    assert {shadow.state_key for shadow in shadows} <= saved.keys()
    model.fails = False
    fit(model, tmp_path, *shadows)
    assert equal(weights(model), weights(shadows[1].twin))


def test_pickles_before_and_after_a_fit(tmp_path: Path) -> None:
    ours = FeedForwardShadowCallback(3, name="x")
    again = pickle.loads(pickle.dumps(ours))
    assert again.__dict__ == ours.__dict__
    fit(Scheduled(every_epoch), tmp_path, again)
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert equal(weights(copied.twin), weights(again.twin))


@on_gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_on_a_gpu(precision: str, tmp_path: Path) -> None:
    """Dropout masks come from the device's generator; the ratio from its events."""

    def run(*callbacks: L.Callback) -> tuple[dict[str, Tensor], dict[str, float]]:
        model = Noisy(optimizer=adam)
        fitted = fit(model, tmp_path, *callbacks, projection(), accelerator="gpu", precision=precision)
        return weights(model), shadowed(fitted.callback_metrics)

    whole, short = FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)
    (alone, _), (beside, metrics) = run(), run(whole, short)
    assert equal(alone, beside)
    assert equal(beside, weights(whole.twin))
    assert not equal(beside, weights(short.twin))
    assert metrics["shadow/k=1/step_time_ratio"] > 1


# Bad input ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharding_strategies(strategy: type) -> None:
    run: Any = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(MisconfigurationException, match=rf"Got strategy {strategy.__name__}; use 'ddp' or 'auto'"):
        FeedForwardShadowCallback(1).setup(run, Noisy(), "fit")
    FeedForwardShadowCallback(1).setup(run, Noisy(), "test")


class Manual(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoRecurrence(Recurrent):
    def __init__(self) -> None:
        class Linear(nn.Linear):
            def forward(self, x: Tensor) -> Any:
                return super().forward(x), None

        super().__init__(Linear(FEATURES, UNITS), growth=0.0)


class NoOptimizer(Noisy):
    def configure_optimizers(self) -> None:
        return None


class Fetching(Noisy):
    def training_step(self, dataloader_iter: Any) -> Any:
        return self.loss(next(dataloader_iter)[0])


class Unfinished(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.LazyLinear(3)


class Replaced(Noisy):
    def __init__(self) -> None:
        super().__init__()
        own = self.training_step
        self.training_step = lambda batch, batch_idx: own(batch, batch_idx)


class Counter:
    """A scheduler that does not say how far it is."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Counted(Noisy):
    def configure_optimizers(self) -> Any:
        optimizer = adam(self.parameters())
        return [optimizer], [Counter(optimizer)]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None: ...


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Manual, r"needs automatic optimization: under manual .*rhythm\. Got `automatic_optimization=False`"),
        (NoRecurrence, r"needs a recurrent model\. Got NoRecurrence with modules of types \['Linear'.*register"),
        (NoOptimizer, r"`configure_optimizers` to return one optimizer, .* Got None"),
        (Fetching, r"Got a `training_step\(dataloader_iter\)`.*let it take `batch`"),
        (Uncopyable, r"could not deep-copy Uncopyable: pass `twin=`.* Got RuntimeError: no copies"),
        (Unfinished, r"call the model once.* Got 2 lazy ones without a shape, the first is 'late\.weight'"),
        (Replaced, r"its `training_step` was replaced, .* Pass `twin=`"),
        (Counted, r"`last_epoch`, which Counter does not have"),
    ],
)
def test_models_that_have_no_twin(model: Callable[[], L.LightningModule], message: str, tmp_path: Path) -> None:
    """Refused before the first batch, and nothing is left behind."""
    module = model()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, tmp_path, FeedForwardShadowCallback(1), num_sanity_val_steps=0)
    assert not module._forward_hooks
    assert "log" not in vars(module)
