"""One training, the loss of its best epoch on the test split, and the window that the test sequences need."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import certify
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    TruncationPenaltyCallback,
)
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.diagnostics.truncation_profile import sequence_errors, windows_needed
from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.experiments.results import Row
from lightning_stable.experiments.small_tasks import SmallTask
from lightning_stable.models import LanguageModel

# Of a column of text, and of the longest window that is measured.
CHUNK, LONGEST = 70, 128
# Residual blocks of the convolutional network, and the factor of its learning rate on music.
_BLOCKS, _SLOWER = 3, 0.4
_DISTANCE = "shadow/val_weight_distance_relative"


@dataclass(frozen=True)
class Setting:
    """What a training is, by the names of its columns.

    Attributes:
        task: ``"text"`` or ``"music"``.
        cell: The cell, or ``"tcn"``.
        method: ``"none"``, ``"penalty"``, ``"projection"`` or ``"convolution"``.
        window: That of the penalty; None without one.
        weight: That of the penalty, or the rate of the projection; None without either.
        seed: The seed.
    """

    task: str
    cell: str
    method: str
    window: int | None
    weight: float | None
    seed: int


def settings(options: PenaltyOptions) -> list[Setting]:
    """Return all trainings, the unconstrained ones and the projected first."""
    found = []
    for seed in options.seeds:
        tasks = [(task, cell) for task in options.tasks for cell in options.cells]
        found += [Setting(*task, "none", None, None, seed) for task in tasks]
        found += [Setting(*task, "projection", None, options.rate, seed) for task in tasks]
        found += [Setting(task, "tcn", "convolution", None, None, seed) for task in options.tasks]
        pairs = [(window, weight) for weight in options.weights for window in options.windows]
        found += [Setting(*task, "penalty", *pair, seed) for pair in pairs for task in tasks]
    return found


def train(setting: Setting, options: PenaltyOptions) -> Row:
    """Train and measure."""
    text = setting.task == "text"
    task = SmallTask.load("text", chunk_length=CHUNK) if text else SmallTask.load(options.music, options.data_dir)
    epochs = options.text_epochs if text else options.music_epochs
    row: Row = {**asdict(setting), "units": options.units}
    if setting.method == "convolution":
        slower = 1.0 if text else _SLOWER
        model: Any = task.model(setting.seed, options.units, rate_factor=slower, core="tcn", num_layers=_BLOCKS)
        fitted = task.fit(model, [], epochs)
        # An output depends on this many inputs, and the error behind them is 0.
        needed = dict.fromkeys(("half", "most", "all"), model.receptive_field)
        return {**row, "loss": fitted.test, **needed, "epoch": fitted.epoch, "seconds": round(fitted.seconds, 1)}
    model = task.model(setting.seed, options.units, cell=setting.cell)
    callbacks: list[Callback] = []
    if setting.method == "penalty":
        assert setting.window is not None
        assert setting.weight is not None
        callbacks.append(TruncationPenaltyCallback(setting.window, setting.weight, seed=setting.seed))
    elif setting.method == "projection":
        assert setting.weight is not None
        callbacks.append(StabilityProjectionCallback(setting.weight, input_bound=task.input_bound))
    if options.twin is not None:
        callbacks.append(FeedForwardShadowCallback(options.twin))
    fitted = task.fit(model, callbacks, epochs)
    sequences = _text(model, task.data) if text else [inputs for inputs, _ in task.data.sequences("test")]
    return {
        **row,
        "loss": fitted.test,
        **windows(model.core, sequences, options.tolerance),
        "rate": certify(model, input_bound=task.input_bound).rate,
        **({"twin": options.twin, "distance": fitted.logged[_DISTANCE]} if options.twin is not None else {}),
        "epoch": fitted.epoch,
        "seconds": round(fitted.seconds, 1),
    }


@torch.no_grad()
def windows(core: nn.Module, sequences: list[Tensor], tolerance: float) -> Row:
    """Return the windows that half of the sequences need, nine in ten, and all; None above ``LONGEST``."""
    core.eval()
    errors, size = sequence_errors(core, pack_sequence(sequences, enforce_sorted=False), LONGEST)
    needed = windows_needed(errors, tolerance * size).sort().values.tolist()

    def enough(share: float) -> int | None:
        window: int = needed[math.ceil(share * len(needed)) - 1]
        return window if window <= LONGEST else None

    return {"half": enough(0.5), "most": enough(0.9), "all": enough(1.0), "sequences": len(needed)}


@torch.no_grad()
def _text(model: LanguageModel, data: PythonDocsDataModule) -> list[Tensor]:
    """Pieces of the test text, twice as long as the longest window, as the core reads them."""
    text = data.stream("test")
    return list(model.embedding(text[: len(text) // (2 * LONGEST) * 2 * LONGEST].view(-1, 2 * LONGEST)))
