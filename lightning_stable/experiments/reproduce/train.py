"""The training of one model from its configuration."""

from __future__ import annotations

import inspect
import json
import math
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, instantiate_class
from typing_extensions import override

from lightning_stable import certify
from lightning_stable.checkpoints import read_checkpoint
from lightning_stable.experiments.pool import Report, one_thread
from lightning_stable.experiments.reproduce.task import Config, Run, Task, filled, merged
from lightning_stable.experiments.results import Row
from lightning_stable.feedforward import ConvolutionalNet
from lightning_stable.files import write_text
from lightning_stable.quiet import quiet
from lightning_stable.trainers import callbacks_of


def prepare(task: Task, run: Run, folder: Path, data: LightningDataModule) -> Path:
    """Write the configuration of a run, complete and ready for ``lightning-stable fit --config``, and return its path.

    Args:
        task: The task.
        run: The run.
        folder: The folder for everything the run writes.
        data: The data module, set up.
    """
    monitor = f"val_{task.metric.name}"
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": str(folder / "checkpoints"),
            "filename": "best",
            "monitor": monitor,
            "mode": "min" if task.metric.better == "lower" else "max",
        },
    }
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        # A folder per run under one root, which TensorBoard shows side by side.
        "init_args": {"save_dir": str(folder.parent.parent / "tensorboard"), "name": "", "version": run.name},
    }
    config = filled(merged(run.config, {"trainer": {"callbacks": [checkpoint], "logger": logger}}), data)
    path = folder / "config.yaml"
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    return path


@quiet()
def train(task: Task, run: Run, folder: Path, config: Path, report: Report) -> Row:
    """Train a model, test the best epoch, certify it, and write ``result.json`` into the folder of the run.

    Returns:
        The row of the run in the results.
    """
    one_thread()
    start = time.perf_counter()
    cli = LightningCLI(
        args=["--config", str(config)],
        run=False,
        save_config_callback=None,
        trainer_defaults={"callbacks": [_Reporter(f"val_{task.metric.name}", task.metric.scale, report)]},
    )
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    trainer.fit(model, datamodule=data)
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
        "seconds": round(time.perf_counter() - start, 1),
        "seed": run.config["seed_everything"],
        "published": [asdict(entry) for entry in task.published if _is_of(entry.core, entry.stable, run)],
    }
    write_text(folder / "result.json", json.dumps({"row": row, "config": config.read_text(encoding="utf-8")}, indent=1))
    return row


def finished(folder: Path, config: Path) -> Row | None:
    """Return the row of a run that was finished with this very configuration; None otherwise."""
    path = folder / "result.json"
    if not path.is_file():
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
        return {"rate": None, "guarantee": "none", "recurrent_norm": None}
    inputs = None if input_bound is None else instantiate_class((), input_bound)
    certificate = certify(model, input_bound=inputs)
    return {
        "rate": certificate.rate if math.isfinite(certificate.rate) else None,
        "guarantee": certificate.guarantee,
        "recurrent_norm": math.hypot(*(norm for layer in certificate.layers for norm in layer.recurrent_norm.values())),
    }


def _is_of(core: str, stable: bool | None, run: Run) -> bool:
    return core == run.core and run.window is None and (stable is None or stable == run.stable)


class _Reporter(Callback):
    """Reports the validation metric after every epoch."""

    def __init__(self, monitor: str, scale: float, report: Report) -> None:
        self._monitor, self._scale, self._report = monitor, scale, report

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
            value = float(trainer.callback_metrics[self._monitor]) * self._scale
            self._report(epoch, epochs, f"epoch {epoch} of {epochs}, validation {value:.4g}")
