"""A model that maps sequences to numbers, or to classes: the synthetic tasks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.metrics import MutualInformation
from lightning_stable.models.sequence_model import SequenceModel

Batch = tuple[Tensor, Tensor]


class SequenceRegressor(SequenceModel):
    """Core, dropout, and a linear head at every step, or at the last step alone.

    Batches are pairs ``(inputs, targets)`` of sequences of one length. Targets of shape ``(batch, time, output_size)``
    belong to every step and those of shape ``(batch, output_size)`` to the last; of classes they are ids, without the
    last dimension. Logs ``train_loss`` per step, ``val_loss`` and ``test_loss`` per epoch: the mean over all targets of
    the squared error, or of the cross entropy in nats. With labels it also logs ``val_bits`` and ``test_bits``, see
    :class:`~lightning_stable.metrics.MutualInformation`.

    Args:
        input_size: Features per time step. Inputs that are ids are encoded as ``input_size`` zeros and ones.
        output_size: Numbers per target, or classes.
        loss: ``"mse"`` for numbers; ``"cross-entropy"`` for classes; ``"binary"`` for labels 0 and 1, whose scores are
            the logits of 1.
        hidden_size: Units or channels per layer.
        dropout: Dropout between the layers (inside a convolutional core) and before the head.
        kwargs: The other arguments of :class:`~lightning_stable.models.CoreModel`.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        loss: Literal["mse", "cross-entropy", "binary"] = "mse",
        hidden_size: int = 64,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size=hidden_size, dropout=dropout, **kwargs)
        self.input_size = checks.integer("input_size", input_size)
        self.loss = checks.choice("loss", loss, ("mse", "cross-entropy", "binary"))
        self.build(self.input_size, checks.integer("output_size", output_size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions or class scores at every step, ``(batch, time, output_size)``.

        Args:
            inputs: Shape ``(batch, time, input_size)``, or ids of shape ``(batch, time)``.
        """
        if not inputs.is_floating_point():
            inputs = F.one_hot(inputs, self.input_size).to(self.head.weight.dtype)
        return self.read(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        predictions, targets = self._answer(batch)
        loss = self._total(predictions, targets) / targets.numel()
        self.log("train_loss", loss, prog_bar=True, batch_size=targets.numel())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the loss; return that of the batch."""
        return self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss."""
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predictions for a batch of inputs, with or without targets."""
        return self(batch if isinstance(batch, Tensor) else batch[0])  # type: ignore[no-any-return]

    def _evaluate(self, stage: str, batch: Batch, dataloader_idx: int) -> Tensor:
        predictions, targets = self._answer(batch)
        if self.loss == "binary":
            self.log_over_split(f"{stage}_bits", MutualInformation, dataloader_idx, predictions > 0, targets)
        return self.log_average(f"{stage}_loss", self._total(predictions, targets), targets.numel(), dataloader_idx)

    def _answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of the same steps."""
        inputs, targets = batch
        predictions = self(inputs)
        predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
        classes = self.loss == "cross-entropy"
        if targets.dim() == (1 if classes else 2):
            predictions = predictions[:, -1]
        if (predictions.shape[:-1] if classes else predictions.shape) != targets.shape:
            raise ValueError(
                f"`targets` must belong to every step or to the last one. Got shape {tuple(targets.shape)}; the model "
                f"predicts {tuple(predictions.shape)}{', the last dimension for classes' if classes else ''}."
            )
        return predictions, targets

    def _total(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses."""
        if self.loss == "cross-entropy":
            return F.cross_entropy(predictions.flatten(0, -2), targets.flatten(), reduction="sum")
        if self.loss == "binary":
            return F.binary_cross_entropy_with_logits(predictions, targets.to(predictions.dtype), reduction="sum")
        return (predictions - targets).square().sum()
