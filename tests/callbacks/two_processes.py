"""Runs on two processes that see different data: ``python -m tests.callbacks.two_processes STRATEGY FOLDER``.

All runs of a strategy share their processes' start, which takes longer than a run.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_stable.callbacks import (
    StabilityProjectionCallback,
    TruncationPenaltyCallback,
    TruncationProfileCallback,
)
from tests.callbacks import two_shadows
from tests.helpers import FEATURES, UNITS, AfterStep, Recurrent, Sequences, trainer, weights

RATE, BOUND, BATCHES = 0.9, 0.5, 5
PENALTY = 3.0


class Three(nn.Module):
    """One recurrence with recorded inputs, one with a derived set, and one with a given bound."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = nn.LSTM(FEATURES, UNITS, batch_first=True)
        self.derived = nn.GRU(UNITS, UNITS, batch_first=True)
        self.given = nn.GRU(FEATURES, UNITS, batch_first=True)
        self.free = nn.RNN(UNITS, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.free(self.derived(self.recorded(x)[0])[0] + self.given(x)[0])


class Lopsided(Sequences):
    """The second process, which gets every second item, sees inputs a hundred times as large."""

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)
        self.data = self.data.clamp(-BOUND, BOUND)
        self.data[1::2] *= 100


class Save(L.Callback):
    """Writes down what this process saw."""

    def __init__(
        self, folder: Path, ours: StabilityProjectionCallback, probe: AfterStep, profile: TruncationProfileCallback
    ) -> None:
        self.folder, self.ours, self.probe, self.profile = folder, ours, probe, profile

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seen = {
            "weights": self.probe.results,
            "last": weights(pl_module),
            "report": self.ours.report.to_dict(),
            "ranges": {name: seen.clone() for name, seen in self.ours.state_dict()["input_ranges"].items()},
            "metrics": dict(trainer.callback_metrics),
            "errors": {name: found.sequence_error for name, found in self.profile.profiles.items()},
        }
        torch.save(seen, self.folder / f"{trainer.global_rank}.pt")


def data(length: int = 2 * 2 * BATCHES, **kwargs: Any) -> DataLoader[Tensor]:
    return DataLoader(Lopsided(length, **kwargs), batch_size=2)


def validation_data() -> DataLoader[Tensor]:
    """One sequence less, so that the second process gets one that the first has had."""
    return data(2 * 2 * BATCHES - 1, seed=1, scale=9.0)


def projected(folder: Path) -> None:
    ours = StabilityProjectionCallback(RATE, input_bound={"core.given": BOUND}, every_n_steps=2)
    probe = AfterStep(weights)
    profile = TruncationProfileCallback(3, modules="core.recorded", num_batches=99, coverage=0.8, confidence=0.8)
    run = trainer(
        folder,
        ours,
        probe,
        profile,
        Save(folder, ours, probe, profile),
        ModelCheckpoint(folder, "middle-{step}", every_n_train_steps=3, monitor="stability/rate"),
        strategy="ddp",
        devices=2,
        log_every_n_steps=2,
        logger=CSVLogger(folder, "log"),
    )
    run.fit(Recurrent(Three(), bounded=False, growth=0.3), data(), validation_data())


class Penalised(Recurrent):
    """Keeps its gradients before every step, and the inputs of its core."""

    def __init__(self) -> None:
        super().__init__("gru", growth=0.0)
        self.inputs, self.gradients = [], []  # type: ignore[var-annotated]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        self.inputs.append(batch[:, :-1].clamp(-2.0, 2.0))
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in self.named_parameters()})


def penalised(folder: Path) -> None:
    for weight in (0.0, PENALTY):
        model = Penalised()
        run = trainer(
            folder,
            TruncationPenaltyCallback(1, weight),
            strategy="ddp",
            devices=2,
            accumulate_grad_batches=2,
            log_every_n_steps=1,
        )
        run.fit(model, data(), validation_data())
        seen = {
            "inputs": model.inputs,
            "gradients": model.gradients,
            "weights": weights(model),
            "metrics": dict(run.callback_metrics),
        }
        torch.save(seen, folder / f"penalty-{weight}-{run.global_rank}.pt")


if __name__ == "__main__":
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    if strategy == "ddp":
        projected(folder)
        penalised(folder)
        two_shadows.run("alone", strategy, folder)
    two_shadows.run("beside", strategy, folder)
