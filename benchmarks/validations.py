"""What certificates at validations and for checkpoints add to an epoch of the demo's model."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from benchmarks.timing import Comparison, compared, duration
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.models import LanguageModel
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection.projector import Projector

# Everything the callback does once an epoch; what it does after steps and log lines is not among them.
_HOOKS = (
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "state_dict",
    "on_save_checkpoint",
)


class _Timed(StabilityProjectionCallback):
    """Adds up the seconds of the hooks of an epoch."""

    seconds = 0.0


def _timed(name: str) -> Callable[..., Any]:
    plain = getattr(StabilityProjectionCallback, name)

    def hook(self: _Timed, *arguments: Any) -> Any:
        start = time.process_time()
        try:
            return plain(self, *arguments)
        finally:
            self.seconds += time.process_time() - start

    return hook


for _name in _HOOKS:
    setattr(_Timed, _name, _timed(_name))


class _Epochs(L.Callback):
    """Keeps the processor's seconds of whole epochs, and of the certificates in them."""

    def __init__(self, projection: _Timed) -> None:
        self.projection = projection
        self.pairs: list[tuple[float, float]] = []

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        self.start, self.projection.seconds = time.process_time(), 0.0

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def _close(self) -> None:
        if hasattr(self, "start"):
            self.pairs.append((time.process_time() - self.start, self.projection.seconds))


def validations(
    cells: tuple[str, ...] = ("lstm", "gru", "rnn"), units: int = 128, epochs: int = 2, batches: int | None = None
) -> Iterator[Comparison]:
    """Time epochs of the demo's model without a twin, and in them the certificates: ``1 / ratio`` is their share.

    ``one certificate in %`` is the share that a single certificate would have.

    Args:
        cells: The cells of the language model.
        units: The number of its units.
        epochs: The number of epochs.
        batches: Batches of an epoch; None takes all.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    for cell in cells:
        data = PythonDocsDataModule()
        data.prepare_data()
        data.setup("fit")
        torch.manual_seed(0)
        model = LanguageModel(len(data.vocab), cell=cell, hidden_size=units, input_dropout=0.0)
        projection = _Timed(0.99)
        clock = _Epochs(projection)
        with tempfile.TemporaryDirectory() as folder:
            L.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                limit_train_batches=batches,
                limit_val_batches=batches,
                callbacks=[clock, projection, ModelCheckpoint(folder, monitor="val_perplexity")],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                gradient_clip_val=0.25,
                num_sanity_val_steps=0,
                default_root_dir=folder,
            ).fit(model, datamodule=data)
        whole, ours = (sum(side) for side in zip(*clock.pairs, strict=True))
        one = median(duration(Projector(model, Constraint(0.99)).certify) for _ in range(5))
        shares = {"share in %": 100 * ours / whole, "one certificate in %": 100 * one * len(clock.pairs) / whole}
        yield compared(
            f"certificates of an epoch, {cell} with {len(data.vocab)} words",
            units,
            "cpu",
            "that epoch of the demo",
            clock.pairs,
            0.0,
            shares,
        )
