"""One training, the loss of its best epoch on the test split, and the window that the test sequences need."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback, TruncationPenaltyCallback
from lightning_stable.datamodules import ChoralesDataModule, PythonDocsDataModule
from lightning_stable.diagnostics.truncation_profile import sequence_errors, windows_needed
from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.experiments.results import Row
from lightning_stable.models import LanguageModel, MusicModel
from lightning_stable.stability import ActiveEntries

# Of a column of text, and of the longest window that is measured.
CHUNK, LONGEST = 70, 128


@dataclass(frozen=True)
class Setting:
    """What a training is, by the names of its columns.

    Attributes:
        task: ``"text"`` or ``"music"``.
        cell: The cell.
        method: ``"none"``, ``"penalty"`` or ``"projection"``.
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
        pairs = [(window, weight) for weight in options.weights for window in options.windows]
        found += [Setting(*task, "penalty", *pair, seed) for pair in pairs for task in tasks]
    return found


def train(setting: Setting, options: PenaltyOptions) -> Row:
    """Train and measure."""
    text = setting.task == "text"
    data: Any
    if text:
        data = PythonDocsDataModule(chunk_length=CHUNK)
    else:
        data = ChoralesDataModule(options.data_dir, name=options.music, batch_size=8, eval_batch_size=32, bucket=True)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    seed_everything(setting.seed, verbose=False)
    model: Any
    if text:
        # Dropout before the recurrence would make the certificate cover every mask.
        sizes: dict[str, Any] = {"hidden_size": options.units, "embedding_size": options.units}
        model = LanguageModel(len(data.vocab), cell=setting.cell, **sizes, input_dropout=0.0)
    else:
        model = MusicModel(
            cell=setting.cell, hidden_size=options.units, key_frequencies=data.key_frequencies, learning_rate=5e-3
        )
    callbacks: list[Callback] = []
    if setting.method == "penalty":
        assert setting.window is not None
        assert setting.weight is not None
        callbacks.append(TruncationPenaltyCallback(setting.window, setting.weight, seed=setting.seed))
    elif setting.method == "projection":
        assert setting.weight is not None
        bound = None if text else ActiveEntries(data.max_active)
        callbacks.append(StabilityProjectionCallback(setting.weight, input_bound=bound))
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_loss" if text else "val_nll")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=options.text_epochs if text else options.music_epochs,
            callbacks=[*callbacks, best],
            gradient_clip_val=0.25 if text else 1.0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=data)
        seconds = time.perf_counter() - start
        (metrics,) = trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
        best_epoch = int(torch.load(best.best_model_path, weights_only=True)["epoch"]) + 1
    sequences = _text(model, data) if text else [inputs for inputs, _ in data.sequences("test")]
    return {
        **asdict(setting),
        "loss": metrics["test_loss" if text else "test_nll"],
        **windows(model.core, sequences, options.tolerance),
        "rate": certify(model, input_bound=None if text else ActiveEntries(data.max_active)).rate,
        "epoch": best_epoch,
        "seconds": round(seconds, 1),
        "units": options.units,
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
