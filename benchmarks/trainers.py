"""Steps of a Trainer that trains a language model, with any callbacks, on one process or several."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable.models import LanguageModel

Callbacks = Callable[[], Sequence[L.Callback]]
_FIRST_STEPS = 3


class _Clock(L.Callback):
    """Times steps from the start of one batch to that of the next; the first process leaves the times in a file."""

    def __init__(self, path: Path, device: str, clocked: bool) -> None:
        self.path, self.device = path, device
        # As in benchmarks.timing.
        self.now = time.perf_counter if clocked or device != "cpu" else time.process_time
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.times.append(self.now())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(steps))


def nothing() -> Sequence[L.Callback]:
    """Return no callbacks, for a plain trainer."""
    return ()


def step_seconds(callbacks: Callbacks, **settings: Any) -> float:
    """Return the median seconds of a step of a fresh run, see :func:`step_times`; the first few do not count."""
    return median(step_times(callbacks, **settings)[_FIRST_STEPS:])


def step_times(
    callbacks: Callbacks,
    *,
    cell: str = "lstm",
    units: int = 200,
    features: int | None = None,
    vocabulary: int = 10_000,
    batch: int = 20,
    time: int = 35,
    steps: int = 12,
    processes: int = 1,
    device: str = "cpu",
    clocked: bool = False,
) -> list[float]:
    """Return the seconds of every step of a fresh run but the last.

    Args:
        callbacks: Makes the callbacks of the trainer.
        cell: The cell of the language model.
        units: The number of its units.
        features: The size of its embedding; None takes as many as units.
        vocabulary: The size of its vocabulary.
        batch: The number of sequences per step.
        time: The number of tokens of a sequence.
        steps: The number of steps of the run.
        processes: The number of processes on this machine; on CPUs they are forked and use gloo.
        device: ``cpu`` or ``cuda``.
        clocked: Whether a clock times a single process on a CPU as well. Several wait for each other, which the
            processor's time does not show.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (steps * processes, batch, time + 1))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        TensorDataset(tokens[..., :-1], tokens[..., 1:]), batch_size=None, shuffle=False
    )
    model = LanguageModel(vocabulary, cell=cell, hidden_size=units, embedding_size=features or units, input_dropout=0.0)
    on_cpu = device == "cpu"
    several = DDPStrategy(start_method="fork", process_group_backend="gloo") if on_cpu else "ddp"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seconds")
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu" if on_cpu else "gpu",
            devices=processes,
            strategy="auto" if processes == 1 else several,
            callbacks=[*callbacks(), _Clock(path, device, clocked or processes > 1)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=0.25,
            log_every_n_steps=steps + 1,
            default_root_dir=os.fspath(folder),
        )
        trainer.fit(model, loader)
        return list(json.loads(path.read_text()))
