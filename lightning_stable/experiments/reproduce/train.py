"""The training of one model from its configuration."""

from __future__ import annotations

import inspect
import json
import math
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, instantiate_class
from typing_extensions import override

from lightning_stable import certify
from lightning_stable.checkpoints import declare_inputs, read_checkpoint
from lightning_stable.experiments.pool import Report, one_thread
from lightning_stable.experiments.reproduce.resume import (
    KeepLast,
    checkpoints,
    clear,
    last_checkpoint,
    tensorboard,
)
from lightning_stable.experiments.reproduce.task import Config, Run, Task, filled, merged
from lightning_stable.experiments.results import Row
from lightning_stable.feedforward import ConvolutionalNet
from lightning_stable.files import write_text
from lightning_stable.quiet import quiet
from lightning_stable.recurrence import find_recurrences
from lightning_stable.trainers import callbacks_of

_BETWEEN_REPORTS = 1.0  # seconds


def prepare(task: Task, run: Run, folder: Path, data: LightningDataModule, *, resume: bool = False) -> Path:
    """Write the configuration of a run, complete and ready for ``lightning-stable fit --config``, and return its path.

    What an earlier run left in the folder is removed, unless this one goes on with it.

    Args:
        task: The task.
        run: The run.
        folder: The folder for everything the run writes.
        data: The data module, set up.
        resume: Whether a run goes on that was started with the same configuration.
    """
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": str(checkpoints(folder)),
            "filename": "best",
            "monitor": f"val_{task.metric.name}",
            "mode": "min" if task.metric.better == "lower" else "max",
        },
    }
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tensorboard(folder)), "name": "", "version": folder.name},
    }
    config = merged(run.config, {"trainer": {"callbacks": [checkpoint], "logger": logger}})
    text = yaml.safe_dump(filled(config, data, config["trainer"]), sort_keys=False)
    path = folder / "config.yaml"
    if not (resume and path.is_file() and path.read_text(encoding="utf-8") == text):
        clear(folder)
        write_text(path, text)
    return path


@quiet()
def train(task: Task, run: Run, folder: Path, config: Path, report: Report) -> Row:
    """Train a model, test the best epoch, certify it, and write ``result.json`` into the folder of the run.

    A run that was stopped goes on after its last whole epoch.

    Returns:
        The row of the run in the results.
    """
    one_thread()
    start = time.perf_counter()
    last = last_checkpoint(folder)
    if last is None:  # a part of the first epoch may have left something
        clear(folder)
    watcher = _Watcher(f"val_{task.metric.name}", task.metric.scale, task.input_bound, report)
    cli = LightningCLI(
        args=["--config", str(config)],
        run=False,
        save_config_callback=None,
        trainer_defaults={"callbacks": [watcher, KeepLast(folder)]},
    )
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    trainer.fit(model, datamodule=data, ckpt_path=None if last is None else str(last))
    checkpoint = callbacks_of(trainer, ModelCheckpoint)[0]
    if checkpoint.best_model_score is None:
        raise ValueError(f"Training left no checkpoint. Got no finite val_{task.metric.name}.")
    model.load_state_dict(read_checkpoint(Path(checkpoint.best_model_path))["state_dict"])
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    row = {
        "task": task.name,
        "core": run.core,
        "stable": run.stable,
        "window": run.window,
        "metric": task.metric.title,
        "validation": checkpoint.best_model_score.item() * task.metric.scale,
        "test": metrics[f"test_{task.metric.name}"] * task.metric.scale,
        **_certificate(model, filled(task.input_bound, data)),
        "receptive_field": getattr(model, "receptive_field", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": trainer.current_epoch,
        "seconds": round(watcher.seconds_before + time.perf_counter() - start, 1),
        "seed": run.seed,
        "published": [asdict(entry) for entry in task.published if _is_of(entry.core, entry.stable, run)],
    }
    write_text(folder / "result.json", json.dumps({"row": row, "config": config.read_text(encoding="utf-8")}, indent=1))
    if (last := last_checkpoint(folder)) is not None:
        last.unlink()  # there is nothing left to go on with
    return row


def finished(folder: Path) -> Row | None:
    """Return the row of a run that was finished with the configuration in its folder; None otherwise."""
    path, config = folder / "result.json", folder / "config.yaml"
    if not (path.is_file() and config.is_file()):
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    row: Row = result["row"]
    return row if result["config"] == config.read_text(encoding="utf-8") else None


def make_data(config: Config) -> LightningDataModule:
    """Return the data module of a configuration, set up.

    Raises:
        ValueError: If it needs a folder with the data set, or has no use for one.
    """
    name: str = config["data"]["class_path"]
    data_dir = config["data"].get("init_args", {}).get("data_dir")
    module, _, class_name = name.rpartition(".")
    parameter = inspect.signature(getattr(import_module(module), class_name)).parameters.get("data_dir")
    if parameter is None and data_dir is not None:
        raise ValueError(f"`--data-dir` has no meaning for {class_name}, which makes its own data. Got {data_dir!r}.")
    if parameter is not None and parameter.default is parameter.empty and data_dir is None:
        raise ValueError(f"`--data-dir` must be the folder with your copy of the data for {class_name}. Got None.")
    data: LightningDataModule = instantiate_class((), {"init_args": {}} | config["data"])
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _certificate(model: LightningModule, input_bound: Config | None) -> Row:
    if isinstance(getattr(model, "core", None), ConvolutionalNet):
        return {"rate": None, "inputs": None, "input_guarantee": "none", "recurrent_norm": None, "gates": {}}
    inputs = None if input_bound is None else instantiate_class((), input_bound)
    certificate = certify(model, input_bound=inputs)
    return {
        "rate": certificate.rate if math.isfinite(certificate.rate) else None,
        "inputs": next((layer.input_bound for layer in certificate.layers if layer.input_bound), None),
        "input_guarantee": certificate.guarantee,
        "recurrent_norm": math.hypot(*(norm for layer in certificate.layers for norm in layer.recurrent_norm.values())),
        "gates": largest_rows(model),
    }


def largest_rows(model: LightningModule) -> dict[str, float]:
    """``max_j sum_k |W_qjk|``: return the largest l1 norm of a recurrent row of every gate, over all layers.

    Cells without gates have one block, ``h``.
    """
    largest: dict[str, float] = {}
    for recurrence in find_recurrences(model):
        for gate, block in recurrence.recurrent_blocks(recurrence.weights()).items():
            largest[gate] = max(largest.get(gate, 0.0), block.abs().sum(1).max().item())
    return largest


def _is_of(core: str, stable: bool | None, run: Run) -> bool:
    return core == run.core and run.window is None and (stable is None or stable == run.stable)


class _Watcher(Callback):
    """Reports how far a run is, and lets its checkpoints say for which inputs the model is meant.

    Args:
        monitor: The name of the validation metric.
        scale: The factor from what is logged to what is shown.
        input_bound: The input set of the task, as a task's file describes it.
        report: Called about once a second, and after every validation.

    Attributes:
        seconds_before: How long the run took before it was stopped.
    """

    def __init__(self, monitor: str, scale: float, input_bound: Config | None, report: Report) -> None:
        self._monitor, self._scale, self._input_bound, self._report = monitor, scale, input_bound, report
        self._validation = ""
        self._start = self._reported = time.perf_counter()
        self.seconds_before = 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.perf_counter() - self._reported >= _BETWEEN_REPORTS:
            self._tell(trainer, batch_idx + 1)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            value = float(trainer.callback_metrics[self._monitor]) * self._scale
            self._validation = f", validation {value:.4g}"
            self._tell(trainer, int(trainer.num_training_batches))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._input_bound is not None:
            declare_inputs(checkpoint, filled(self._input_bound, trainer.datamodule))  # type: ignore[attr-defined]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds_before + time.perf_counter() - self._start}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = state_dict["seconds"]

    def _tell(self, trainer: Trainer, batches: int) -> None:
        self._reported = time.perf_counter()
        epoch, epochs, length = trainer.current_epoch, trainer.max_epochs or 0, int(trainer.num_training_batches)
        share = "" if batches == length else f", {batches / length:.0%}"
        text = f"epoch {epoch + 1} of {epochs}{share}{self._validation}"
        self._report(epoch * length + batches, epochs * length, text)
