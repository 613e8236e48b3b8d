"""What the models of whole sequences share."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_stable import checks
from lightning_stable.metrics import MicroAverage
from lightning_stable.models.cores import build_core, evaluate, output_size, receptive_field


class SequenceModel(LightningModule):
    """A core that reads a sequence, dropout, and a linear head at every step.

    A base class. It keeps averages that are exact over a whole split, whatever its batches and devices.

    Args:
        input_size: Features per time step that the core reads.
        head_size: Features the head returns per time step.
        cell: ``"rnn"``, ``"irnn"``, ``"ugrnn"``, ``"gru"``, ``"lstm"`` or ``"intersection"``.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        hidden_size: Units or channels per layer.
        num_layers: Number of layers.
        dropout: Dropout between the layers (inside a convolutional core) and before the head.
        window: None for a recurrent model; k for the truncated, feed-forward one.
        kernel_size: Of a convolutional core.
        bidirectional: Let an output depend on later inputs as well.
        learning_rate: Of the default optimizer, Adam.

    Raises:
        MisconfigurationException: Naming the argument that has a wrong type or range.
    """

    metric = MicroAverage

    def __init__(
        self,
        input_size: int,
        head_size: int,
        *,
        cell: str,
        core: str | None,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        window: int | None,
        kernel_size: int | None,
        learning_rate: float,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        checks.number("learning_rate", learning_rate, "(0, inf)")
        self.learning_rate = learning_rate
        self.core = build_core(
            input_size,
            hidden_size,
            cell=cell,
            core=core,
            num_layers=num_layers,
            dropout=dropout,
            window=window,
            kernel_size=kernel_size,
            bidirectional=bidirectional,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(output_size(self.core), head_size)
        # One per stage and data loader, made when first needed.
        self.averages = nn.ModuleDict()

    @property
    def receptive_field(self) -> int | None:
        """How many inputs a prediction depends on (on each side, if bidirectional); None if on all."""
        return receptive_field(self.core)

    def read(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The head's answer at every step, ``(batch, time, head_size)``, to inputs of the core."""
        answer: Tensor = self.head(self.dropout(evaluate(self.core, inputs, lengths)))
        return answer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def log_average(self, name: str, total: Tensor, count: int | Tensor, dataloader_idx: int = 0) -> Tensor:
        """Log the average over the epoch of what ``total`` is the sum of, over ``count`` items; return the batch's."""
        key = f"{name}_{dataloader_idx}"
        if key not in self.averages:
            self.averages[key] = self.metric().to(self.device)
        average = cast(MicroAverage, self.averages[key])
        average.update(total, count)
        self.log(name, average, metric_attribute=f"averages.{key}", prog_bar=True)
        return total / count
