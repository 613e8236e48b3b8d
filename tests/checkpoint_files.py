"""Checkpoints of small models, as a Trainer writes them."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from tests.helpers import trainer


class Gated(L.LightningModule):
    """A user's own model with hyperparameters; its inputs are not known."""

    def __init__(self, hidden_size: int, num_layers: int = 1, cell: str = "gru", scale: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.core = getattr(nn, cell.upper())(3, hidden_size, num_layers=num_layers, batch_first=True)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)[0]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        self(batch[0] if isinstance(batch, list) else batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Cells(Gated):
    """The same with a cell in a loop."""

    def __init__(self, hidden_size: int = 4) -> None:
        super().__init__(hidden_size)
        self.core = nn.GRUCell(3, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.core.hidden_size)
        for step in x.unbind(1):
            state = self.core(step, state)
        return state


class Plain(L.LightningModule):
    """A model without a recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)


class Configured(L.LightningModule):
    """Its arguments come in one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.core = nn.GRU(3, self.hparams.hidden_size)


CLASS = "tests.checkpoint_files.Gated"


def save(model: L.LightningModule, folder: Path, **changes: Any) -> Path:
    """Save a model that was not trained; then replace entries of the checkpoint."""
    path = folder / "model.ckpt"
    run = trainer(folder)
    run.strategy.connect(model)
    run.save_checkpoint(path)
    if changes:
        checkpoint = torch.load(path, weights_only=True)
        torch.save(checkpoint | changes, path)
    return path


def as_cli(model: L.LightningModule, folder: Path, class_path: str | None = None) -> Path:
    """Save a model as LightningCLI would have written it."""
    name = class_path or f"lightning_stable.models.{type(model).__name__}"
    extra = {"_class_path": name, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    return save(model, folder, hyper_parameters=dict(model.hparams) | extra)
