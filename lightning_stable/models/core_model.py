"""What all models share: a core, their hyperparameters, an optimizer, and figures that are exact over a split."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, MutableMapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric

from lightning_stable import checks
from lightning_stable.class_paths import record_class_path
from lightning_stable.models.cores import build_core, receptive_field
from lightning_stable.models.plain import plain


class CoreModel(LightningModule):
    """A base class of models whose core reads a sequence. A subclass makes the core, from the arguments kept here.

    The arguments of the whole constructor are saved as hyperparameters, those of the subclass included.

    Args:
        hidden_size: Units or channels per layer (and direction).
        dropout: Dropout between the layers (inside a convolutional core) and before the head.
        cell: ``"rnn"``, ``"irnn"``, ``"ugrnn"``, ``"gru"``, ``"lstm"``, ``"intersection"``, ``"leaky"``,
            ``"mingru"`` or ``"minlstm"``.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        num_layers: Number of layers.
        window: None for a recurrent model; k for the truncated, feed-forward one, in which a prediction depends on
            the last k inputs only.
        kernel_size: Taps of a convolutional core; None for its default.
        residual: Let every recurrent layer but the first add its outputs to its inputs.
        normalize: Let every recurrent layer but the first read normalised inputs. With either of the two, each layer
            has a window of its own.
        longest_time_constant: What a gated core that is to be stable starts from: small recurrent weights, and time
            constants from 1 to so many steps, see :func:`~lightning_stable.stability.spread_time_scales_`. None keeps
            torch's initial weights.
        learning_rate: Learning rate of the default optimizer, Adam.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range or contradicts another.
    """

    core: nn.Module

    def __init__(
        self,
        *,
        hidden_size: int,
        dropout: float,
        cell: str = "lstm",
        core: str | None = None,
        num_layers: int = 1,
        window: int | None = None,
        kernel_size: int | None = None,
        residual: bool = False,
        normalize: bool = False,
        longest_time_constant: float | None = None,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = checks.number("learning_rate", learning_rate, "(0, inf)")
        self.dropout = nn.Dropout(checks.number("dropout", dropout, "[0, 1)"))
        # One per figure and data loader, made when first needed.
        self.averages = nn.ModuleDict()
        self._core_options: dict[str, Any] = {
            "hidden_size": hidden_size,
            "cell": cell,
            "core": core,
            "num_layers": num_layers,
            "dropout": dropout,
            "window": window,
            "kernel_size": kernel_size,
            "residual": residual,
            "normalize": normalize,
            "longest_time_constant": longest_time_constant,
        }

    def _set_hparams(self, hp: MutableMapping[str, Any] | Namespace | str) -> None:
        # All hyperparameters pass through this method of Lightning's, and both what a checkpoint and what a logger
        # gets is made from its result.
        super()._set_hparams(plain(hp))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say of which class it is."""
        record_class_path(checkpoint, self)

    def build_core(self, input_size: int, *, bidirectional: bool = False) -> nn.Module:
        """Return the core that the arguments describe; see :func:`~lightning_stable.models.build_core`."""
        return build_core(input_size, bidirectional=bidirectional, **self._core_options)

    @property
    def receptive_field(self) -> int | None:
        """How many inputs a prediction depends on (on each side, if bidirectional); None if on all."""
        return receptive_field(self.core)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def log_over_split(self, name: str, make: Callable[[], Metric], dataloader_idx: int, *update: Any) -> None:
        """Log what a metric says of a whole split, exactly, in whatever batches and on however many devices it comes.

        Args:
            name: Name of the figure.
            make: Makes the metric, when it is first needed.
            dataloader_idx: Index of the data loader, each of which has its own figure.
            update: What the metric is updated with.
        """
        key = f"{name}_{dataloader_idx}"
        if key not in self.averages:
            self.averages[key] = make().to(self.device)
        metric = cast(Metric, self.averages[key])
        metric.update(*update)
        self.log(name, metric, metric_attribute=f"averages.{key}", prog_bar=True)
