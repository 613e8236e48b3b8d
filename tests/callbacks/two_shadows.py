"""A model on two processes that see different data, alone and beside its twins."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from tests.callbacks.shadows import WHOLE, AfterBatch, Noisy, seed
from tests.helpers import Sequences, trainer

BATCHES = 7


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Save(L.Callback):
    """Writes down what this process saw."""

    def __init__(self, path: Path, probe: AfterBatch, save: ModelCheckpoint) -> None:
        self.path, self.probe, self.save = path, probe, save

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seen = {
            "model": self.probe.model,
            "twins": self.probe.twins,
            "metrics": dict(trainer.callback_metrics),
            "saved": self.save.best_model_path,
        }
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class Unused(Noisy):
    """A parameter that most batches do not use, and running statistics that differ between processes."""

    def __init__(self) -> None:
        super().__init__(growth=1.0, bounded=False, optimizer=momentum)
        self.sometimes = torch.nn.Parameter(torch.ones(()))
        self.norm = torch.nn.BatchNorm1d(3)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = super().training_step(self.norm(batch.mT).mT, batch_idx)
        return loss * self.sometimes if batch_idx == 3 else loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(self.norm(batch.mT).mT, batch_idx)


def data(**kwargs: Any) -> DataLoader[Tensor]:
    return DataLoader(Sequences(2 * 2 * BATCHES, **kwargs), batch_size=2)


def run(name: str, strategy: str, folder: Path) -> None:
    """Train the model ``"alone"`` or ``"beside"`` its twins."""
    shadows = [FeedForwardShadowCallback(WHOLE), FeedForwardShadowCallback(1)] if name == "beside" else []
    probe = AfterBatch(*shadows)
    save = ModelCheckpoint(folder, name, monitor="shadow/k=1/val_loss" if shadows else "val_loss")
    seed()
    fitting = trainer(
        folder,
        *shadows,
        StabilityProjectionCallback(0.9, every_n_steps=2),
        probe,
        save,
        Save(folder / name, probe, save),
        strategy=f"{strategy}_find_unused_parameters_true",
        devices=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        log_every_n_steps=2,
    )
    fitting.fit(Unused(), data(), data(seed=1))
