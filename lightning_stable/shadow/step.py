"""One step of the twin: what Lightning's loops do for the model, through the twin's own strategy and precision plugin.

Lightning's loop under automatic optimization cannot be used: it counts the trainer's batches and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

StepName = Literal["training_step", "validation_step"]


def train(twin: LightningModule, batch: Any, batch_idx: int, *, stepping: bool) -> Tensor | None:
    """Run forward, backward and, at the end of an accumulation, the optimizer's step.

    Args:
        twin: The twin, with a :class:`~lightning_stable.shadow.trainer.TwinTrainer` attached.
        batch: The batch.
        batch_idx: Its index in the epoch.
        stepping: Whether the model made an optimizer step in this batch, or only accumulated gradients.

    Returns:
        The detached loss, divided by the number of accumulated batches; None if ``training_step`` returned None.
    """
    loss: Tensor | None = None

    def closure() -> Tensor | None:
        nonlocal loss
        loss = _forward_and_backward(twin, batch, batch_idx)
        return loss

    if stepping:
        twin.optimizer_step(twin.trainer.current_epoch, batch_idx, twin.optimizers(), closure)  # type: ignore[arg-type]
    else:
        wrapped = twin.trainer.strategy.model
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext():
            closure()
    return loss


def validate(twin: LightningModule, batch: Any, batch_idx: int, *dataloader_idx: int) -> Any:
    """Return what the twin's ``validation_step`` returns."""
    arguments = _arguments(twin, "validation_step", batch, batch_idx)
    return twin.trainer.strategy.validation_step(*arguments, *dataloader_idx)


@torch.enable_grad()
def _forward_and_backward(twin: LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
    trainer = twin.trainer
    optimizer, accumulated = trainer.optimizers[0], trainer.accumulate_grad_batches
    output = trainer.strategy.training_step(*_arguments(twin, "training_step", batch, batch_idx))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    loss = None if loss is None else loss / accumulated
    if batch_idx % accumulated == 0:
        twin.on_before_zero_grad(optimizer)
        twin.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
    if loss is None:
        return None
    detached = loss.detach().clone()  # a gradient scaler scales the loss for the backward pass
    trainer.strategy.backward(loss, optimizer)
    return detached


def _arguments(twin: LightningModule, step: StepName, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """Return the batch, and its index where the step takes one, whatever it is called there."""
    takes_index = is_param_in_hook_signature(getattr(twin, step), "batch_idx", min_args=2)
    return (batch, batch_idx) if takes_index else (batch,)
