"""The trainings of the demo."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lightning_stable import certify
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StateGradientCallback,
    TruncationProfileCallback,
)
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.experiments.demo.options import DemoOptions
from lightning_stable.models import LanguageModel
from lightning_stable.stability import FiniteSet, StabilityReport

TOLERANCE, LONGEST_WINDOW, PROFILED_WINDOW = 1e-3, 150, 40
LINE = 256
DISTANCE_WINDOWS = (2, 5, 10, 20)
# By window: step and relative weight distance, in order.
Distances = dict[int, list[tuple[int, float]]]


@dataclass
class Run:
    """What one training left behind.

    Attributes:
        name: ``"unconstrained"`` or ``"stable"``.
        perplexity: The validation perplexity after every epoch.
        rates: The certified rate after every epoch.
        step_seconds: The duration of every training step.
        projection_seconds: The duration of every projection; empty for an unconstrained model.
        test_perplexity: The test perplexity of the best epoch.
        twin_perplexity: The test perplexity of the twin of that epoch.
        profile: The truncation profile on test text.
        metrics: What the callbacks had logged at the end.
        report: The certificate of the best epoch.
    """

    name: str
    perplexity: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    projection_seconds: list[float] = field(default_factory=list)
    test_perplexity: float = float("nan")
    twin_perplexity: float = float("nan")
    profile: TruncationProfile | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    report: StabilityReport | None = None

    @property
    def best(self) -> float:
        """The best validation perplexity, whose epoch is tested."""
        return min(self.perplexity)


class _Recorder(Callback):
    """Keeps the validation curve and the durations of the training steps."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._run.step_seconds.append(time.perf_counter() - self._start)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._run.perplexity.append(trainer.callback_metrics["val_perplexity"].item())
            self._run.rates.append(certify(pl_module).rate)


class _AfterStep(Callback):
    """Calls a function after every optimizer step; one on each side of the projection gives its duration."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._function())


def checkpoint_of(out: Path, name: str) -> Path:
    """Return where the best epoch of a run is."""
    return out / name / "checkpoints" / "best.ckpt"


def train(
    name: str,
    projection: StabilityProjectionCallback | None,
    data: PythonDocsDataModule,
    out: Path,
    options: DemoOptions,
) -> Run:
    """Train a model and its twin, and test both at the model's best epoch."""
    run = Run(name)
    starts: list[float] = []
    ends: list[float] = []
    checkpoint = ModelCheckpoint(
        dirpath=checkpoint_of(out, name).parent, monitor="val_perplexity", filename=checkpoint_of(out, name).stem
    )
    shadow = FeedForwardShadowCallback(options.window)
    callbacks: list[Callback] = [_Recorder(run), checkpoint, TQDMProgressBar(refresh_rate=10)]
    profiles = [
        TruncationProfileCallback(PROFILED_WINDOW, tolerance=TOLERANCE),
        StateGradientCallback(PROFILED_WINDOW, every_n_epochs=3),
    ]
    if projection is not None:
        clock = time.perf_counter
        callbacks += [_AfterStep(lambda: starts.append(clock())), projection, _AfterStep(lambda: ends.append(clock()))]
    trainer = Trainer(
        max_epochs=options.epochs,
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        limit_test_batches=options.limit_batches,
        log_every_n_steps=min(20, options.limit_batches or 20),
        **_trainer_arguments(name, out, [*callbacks, shadow, *profiles]),
    )
    model = make_model(data, options, stable=projection is not None)
    trainer.fit(model, datamodule=data)
    run.metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    (metrics,) = trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    run.test_perplexity = metrics["test_perplexity"]
    run.projection_seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    run.report = certify(model)
    run.profile = _profile(model, data)
    # The twin of the same epoch.
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    assert shadow.twin is not None
    shadow.twin.load_state_dict(best["callbacks"][shadow.state_key]["checkpoint"]["state_dict"])
    (metrics,) = trainer.test(shadow.twin, datamodule=data, verbose=False)
    run.twin_perplexity = metrics["test_perplexity"]
    return run


def distances_over_steps(
    name: str,
    projection: StabilityProjectionCallback | None,
    data: PythonDocsDataModule,
    out: Path,
    options: DemoOptions,
) -> Distances:
    """Train twins of several windows beside one model for a few steps; return their relative weight distances."""
    shadows = [FeedForwardShadowCallback(window) for window in DISTANCE_WINDOWS]
    every = max(1, min(5, options.distance_steps // 2))
    recorder = _DistanceRecorder(every)
    callbacks = [TQDMProgressBar(refresh_rate=10), *([projection] if projection else []), *shadows, recorder]
    trainer = Trainer(
        max_steps=options.distance_steps,
        limit_val_batches=0,
        log_every_n_steps=every,
        enable_checkpointing=False,
        **_trainer_arguments(f"{name}-windows", out, callbacks),
    )
    trainer.fit(make_model(data, options, stable=projection is not None), datamodule=data)
    return recorder.distances


class _DistanceRecorder(Callback):
    """Keeps the relative weight distances that the shadows before it have logged."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.distances: Distances = {window: [] for window in DISTANCE_WINDOWS}

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self._every == 0:
            for window, curve in self.distances.items():
                value = trainer.callback_metrics[f"shadow/k={window}/weight_distance_relative"]
                curve.append((trainer.global_step, value.item()))


def make_model(data: PythonDocsDataModule, options: DemoOptions, *, stable: bool) -> LanguageModel:
    """Return the unconstrained model, or the one to be made stable, with the weights of the seed."""
    seed_everything(options.seed, verbose=False)
    return LanguageModel(
        len(data.vocab),
        cell=options.cell,
        hidden_size=options.hidden_size,
        longest_time_constant=options.longest_time_constant if stable else None,
        input_dropout=0.0,  # a certificate would have to cover every mask
    )


def _trainer_arguments(name: str, out: Path, callbacks: list[Callback]) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "logger": TensorBoardLogger(out, name="", version=name, default_hp_metric=False),
        "callbacks": callbacks,
        "enable_model_summary": False,
        "gradient_clip_val": 0.25,
        "num_sanity_val_steps": 0,
    }


@torch.no_grad()
def _profile(model: LanguageModel, data: PythonDocsDataModule) -> TruncationProfile:
    """Return how far the recurrence is from its windowed forms on the test text, after any text at all."""
    text = data.stream("test")
    text = text[: len(text) // LINE * LINE].view(-1, LINE)
    table = FiniteSet(model.embedding.weight)
    return truncation_profile(model.core, model.embedding(text), LONGEST_WINDOW, input_bound=table)
