"""The demo: the same LSTM twice on the text every Python carries, once unconstrained and once certified stable."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.models import LanguageModel
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.report import format_rate


@dataclass
class Run:
    """What one training left behind."""

    name: str
    perplexity: list[float] = field(default_factory=list)  # validation, after every epoch
    rates: list[float] = field(default_factory=list)  # certified, after every epoch
    step_seconds: list[float] = field(default_factory=list)
    projection_seconds: list[float] = field(default_factory=list)
    test_perplexity: float = float("nan")
    report: StabilityReport | None = None

    @property
    def best(self) -> float:
        """Best validation perplexity; the epoch that is tested."""
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


@dataclass(frozen=True)
class Options:
    """What both trainings have in common, and what is asked of the stable one.

    Attributes:
        epochs: Epochs of each training.
        cell: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        hidden_size: Recurrent units.
        rate: Largest certified rate of the stable model.
        gate_bound: As in :func:`lightning_stable.project_`.
        seed: Seed of both trainings.
        limit_batches: Batches per epoch and stage, for a quick look; None takes all.
    """

    epochs: int = 12
    cell: str = "lstm"
    hidden_size: int = 200
    rate: float = 0.99
    gate_bound: float | None = None
    seed: int = 1
    limit_batches: int | None = None


def run_demo(out: Path, options: Options) -> int:
    """Train both models, print the comparison, write TensorBoard runs and a figure.

    Args:
        out: Folder for everything written; a number is added to its name if there is something in it already.
        options: How to train.

    Returns:
        Exit status: 0 if the stable model is certified, 1 otherwise.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # Products of this size gain little from a second thread and lose a lot when another program wants the core.
        torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Small text on a few cores: workers would cost more than they bring.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning against a newer torch
    out = _unused(out)
    console = Console()
    data = PythonDocsDataModule()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    floors = data.unigram_perplexity("valid"), data.unigram_perplexity("test")
    console.print(
        f"Python's own documentation: vocabulary of {len(data.vocab)}. A model that knows only word frequencies "
        f"has test perplexity {floors[1]:.1f}."
    )
    projection = StabilityProjectionCallback(options.rate, gate_bound=options.gate_bound)
    runs = []
    for name, constraint in (("unconstrained", None), ("stable", projection)):
        console.print(f"Training the {name} {options.cell}: {options.epochs} epochs, {options.hidden_size} units")
        runs.append(_train(name, constraint, data, out, options))
    console.print(_table(runs, floors))
    stable = runs[1].report
    assert stable is not None
    console.print(stable.table())
    figure = plot_runs(runs, floors[0], options.rate, out / "learning_curves.png")
    console.print(
        f"Learning curves: {figure}\nTensorBoard:     tensorboard --logdir {out}", highlight=False, soft_wrap=True
    )
    return 0 if stable.is_stable else 1


def _unused(folder: Path) -> Path:
    """The folder itself, or the first of ``folder-2``, ``folder-3``, ... that does not hold an earlier demo."""
    candidates = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], candidates) if not path.exists() or not any(path.iterdir()))


def _train(
    name: str,
    projection: StabilityProjectionCallback | None,
    data: PythonDocsDataModule,
    out: Path,
    options: Options,
) -> Run:
    seed_everything(options.seed, verbose=False)
    # No dropout before the recurrence: the certificate would have to cover every mask.
    model = LanguageModel(len(data.vocab), cell=options.cell, hidden_size=options.hidden_size, input_dropout=0.0)
    run, starts, ends = Run(name), [], []  # type: tuple[Run, list[float], list[float]]
    checkpoint = ModelCheckpoint(dirpath=out / name / "checkpoints", monitor="val_perplexity", filename="best")
    callbacks: list[Callback] = [_Recorder(run), checkpoint, TQDMProgressBar(refresh_rate=10)]
    if projection is not None:
        clock = time.perf_counter
        callbacks += [_AfterStep(lambda: starts.append(clock())), projection, _AfterStep(lambda: ends.append(clock()))]
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(out, name="", version=name, default_hp_metric=False),
        callbacks=callbacks,
        enable_model_summary=False,
        gradient_clip_val=0.25,
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        limit_test_batches=options.limit_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=20,
    )
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    run.test_perplexity = metrics["test_perplexity"]
    run.projection_seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    run.report = certify(model)
    return run


def _table(runs: list[Run], floors: tuple[float, float]) -> Table:
    table = Table(title="The same network, unconstrained and stable")
    for column in (
        "",
        "validation\nperplexity",
        "test\nperplexity",
        "certified\nrate",
        "ms per\nstep",
        "of it\nprojection",
    ):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("word frequencies only", *(f"{floor:.1f}" for floor in floors), "-", "-", "-")
    for run in runs:
        assert run.report is not None
        step, projection = median(run.step_seconds), median(run.projection_seconds or [0.0])
        table.add_row(
            run.name,
            f"{run.best:.1f}",
            f"{run.test_perplexity:.1f}",
            " ".join(format_rate(layer.rate) for layer in run.report.layers),
            f"{step * 1e3:.1f}",
            f"{projection * 1e3:.1f} ({projection / step:.0%})" if projection else "-",
        )
    return table


def plot_runs(runs: list[Run], floor: float, rate: float, path: Path) -> Path:
    """Draw the validation curves with the certified rate underneath, and write a PNG."""
    # Drawn without pyplot: no display, and no state left in the user's process.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    colours = {"unconstrained": "#8c8c8c", "stable": "#0b6bcb"}
    for run in runs:
        epochs = range(1, len(run.perplexity) + 1)
        label = f"{run.name}: test {run.test_perplexity:.1f}"
        top.plot(epochs, run.perplexity, marker="o", color=colours[run.name], label=label)
    top.axhline(floor, color="black", linestyle=":", linewidth=1)
    top.annotate(f"unigram model {floor:.0f}", (1, floor), xytext=(0, -12), textcoords="offset points", fontsize=9)
    top.set(yscale="log", ylabel="validation perplexity", title="The same network, unconstrained and certified stable")
    top.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    top.yaxis.set_major_formatter("{x:.0f}")
    top.yaxis.set_minor_locator(NullLocator())
    top.legend(frameon=False)
    free, stable = runs
    bottom.axhline(rate, color="#c0392b", linewidth=1, label=f"target {rate}")
    bottom.plot(range(1, len(stable.rates) + 1), stable.rates, marker="o", color=colours["stable"], label="stable")
    bottom.set(ylim=(min([*stable.rates, rate]) - 0.005, rate + 0.005), ylabel="certified rate", xlabel="epoch")
    off_scale = f"unconstrained: {min(free.rates):.2g} and more, off the scale"
    bottom.text(0.02, 0.06, off_scale, transform=bottom.transAxes, color=colours["unconstrained"], fontsize=9)
    bottom.legend(frameon=False, loc="lower right")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
