"""What the projection adds to whole training steps of a Trainer, hooks and all."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import Comparison, compared
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.models import LanguageModel

_BATCH, _TIME = 20, 35
# Cell, units, vocabulary: the demo's model, and a word model with a vocabulary as large as Penn Treebank's.
CASES = (("lstm", 128, 1750), ("rnn", 512, 10_000))
_FIRST_STEPS = 3


class _Clock(L.Callback):
    """From the beginning of one batch to that of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    @property
    def step(self) -> float:
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return median(steps[_FIRST_STEPS:])


def overhead(
    cases: tuple[tuple[str, int, int], ...] = CASES, device: str = "cpu", runs: int = 5, steps: int = 40
) -> Iterator[Comparison]:
    """Runs with and without the callback in turn; ``ratio`` below 1 is what the projection costs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    for cell, units, vocabulary in cases:
        pairs = [
            (_run(cell, units, vocabulary, device, steps), _run(cell, units, vocabulary, device, steps, projected=True))
            for _ in range(runs)
        ]
        yield compared(f"trainer {cell} with projection", units, device, "plain trainer", pairs, 0.0)


def _run(cell: str, units: int, vocabulary: int, device: str, steps: int, *, projected: bool = False) -> float:
    """Median seconds of a step."""
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (_BATCH, steps * _TIME + 1))
    batches = [
        (tokens[:, k * _TIME : (k + 1) * _TIME], tokens[:, k * _TIME + 1 : (k + 1) * _TIME + 1]) for k in range(steps)
    ]
    data: TensorDataset = TensorDataset(*(torch.stack(side) for side in zip(*batches, strict=True)))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(data, batch_size=None)
    model, clock = LanguageModel(vocabulary, cell=cell, hidden_size=units, input_dropout=0.0), _Clock()
    callbacks: list[L.Callback] = [clock]
    if projected:
        callbacks.append(StabilityProjectionCallback(0.99))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.25,
        log_every_n_steps=steps + 1,
    )
    trainer.fit(model, loader)
    return clock.step
