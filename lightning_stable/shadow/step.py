"""One training step of the twin: what Lightning does for the model under automatic optimization.

Lightning's own loop and precision plugins cannot be used: they call the trainer's callbacks and the model's hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer


class Forwarding(nn.Module):
    """Runs a step method of the twin as ``forward``, the only method DistributedDataParallel synchronises."""

    def __init__(self, twin: LightningModule) -> None:
        super().__init__()
        self.twin = twin
        # Torch's own way to leave out parameters; users set it on their module.
        ignored = getattr(twin, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"twin.{name}" for name in ignored]

    def forward(self, method: str, *args: Any) -> Any:
        """Call the method."""
        return getattr(self.twin, method)(*args)


class TwinOptimizer(LightningOptimizer):
    """What the twin's ``optimizer_step`` gets: its ``step`` does what the precision plugin's does for the model."""

    def __init__(self, optimizer: Optimizer, make_step: Callable[..., Any]) -> None:
        super().__init__(optimizer)
        self._make_step = make_step

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Run the closure, the hooks before a step, clipping and the step."""
        return self._make_step(closure or _nothing, **kwargs)


class TrainingStep:
    """Forward, backward and, at the end of an accumulation, the optimizer's step.

    Args:
        trainer: The model's.
        twin: The module; attached to its trainer.
        optimizer: The twin's.

    Attributes:
        scaler: The twin's own gradient scaler under ``16-mixed``, with the state of the model's.
    """

    def __init__(self, trainer: Trainer, twin: LightningModule, optimizer: Optimizer) -> None:
        self._trainer, self._twin, self.optimizer = trainer, twin, optimizer
        self.wrapped = TwinOptimizer(optimizer, self._make_step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scaler: Any = None if scaler is None else copy.deepcopy(scaler)
        self._ddp = _distributed(trainer.model, twin)
        # Lightning passes the index to steps that take it, whatever they call it.
        self._takes_index = {
            name: is_param_in_hook_signature(getattr(twin, name), "batch_idx", min_args=2)
            for name in ("training_step", "validation_step")
        }
        self._loss: Tensor | None = None

    def run(self, batch: Any, batch_idx: int, *, stepping: bool) -> Tensor | None:
        """Train on a batch.

        Args:
            batch: The batch.
            batch_idx: Its index in the epoch.
            stepping: Whether the model made an optimizer step in this batch, or only accumulated gradients.

        Returns:
            The detached loss, divided by the number of accumulated batches; None if ``training_step`` returned None.
        """
        self._loss = None

        def closure() -> Tensor | None:
            return self._forward_and_backward(batch, batch_idx)

        if stepping:
            self._twin.optimizer_step(self._trainer.current_epoch, batch_idx, self.wrapped, closure)
        else:
            with nullcontext() if self._ddp is None else self._ddp.no_sync():
                closure()
        return self._loss

    def evaluate(self, batch: Any, batch_idx: int, *dataloader_idx: int) -> Any:
        """Return what ``validation_step`` returns."""
        with self._trainer.precision_plugin.val_step_context():
            return self._call("validation_step", batch, batch_idx, *dataloader_idx)

    def _call(self, method: str, batch: Any, batch_idx: int, *more: int) -> Any:
        args = (batch, batch_idx, *more) if self._takes_index[method] else (batch, *more)
        if self._ddp is not None:
            return self._ddp(method, *args)
        return getattr(self._twin, method)(*args)

    @torch.enable_grad()
    def _forward_and_backward(self, batch: Any, batch_idx: int) -> Tensor | None:
        twin, accumulated = self._twin, self._trainer.accumulate_grad_batches
        with self._trainer.precision_plugin.train_step_context():
            output = self._call("training_step", batch, batch_idx)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        loss = None if loss is None else loss / accumulated
        self._loss = None if loss is None else loss.detach().clone()
        if batch_idx % accumulated == 0:
            twin.on_before_zero_grad(self.optimizer)
            twin.optimizer_zero_grad(self._trainer.current_epoch, batch_idx, self.optimizer)
        if loss is not None:
            loss = loss if self.scaler is None else self.scaler.scale(loss)
            twin.on_before_backward(loss)
            twin.backward(loss)
            twin.on_after_backward()
        return self._loss

    def _make_step(self, closure: Callable[[], Any], **kwargs: Any) -> Any:
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is None:

            def closure_and_hooks() -> Any:
                result = closure()
                self._before_step()
                return result

            return optimizer.step(closure=closure_and_hooks, **kwargs)
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException("LBFGS cannot be used with a gradient scaler. Got precision 16-mixed.")
        result = closure()
        if result is None:  # no backward, nothing to unscale
            self._before_step()
            return result
        if not getattr(optimizer, "_step_supports_amp_scaling", False):  # such optimizers unscale in their own step
            scaler.unscale_(optimizer)
        self._before_step()
        result = scaler.step(optimizer, **kwargs)
        scaler.update()
        return result

    def _before_step(self) -> None:
        self._twin.on_before_optimizer_step(self.optimizer)
        self._twin.configure_gradient_clipping(
            self.optimizer,
            gradient_clip_val=self._trainer.gradient_clip_val,
            gradient_clip_algorithm=self._trainer.gradient_clip_algorithm,
        )


def _distributed(model: Any, twin: LightningModule) -> DistributedDataParallel | None:
    """The twin wrapped as the model is: torch averages and overlaps its gradients."""
    if not isinstance(model, DistributedDataParallel):
        return None
    return DistributedDataParallel(
        Forwarding(twin),
        device_ids=model.device_ids,
        process_group=model.process_group,
        broadcast_buffers=model.broadcast_buffers,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
    )


def _nothing() -> None:
    pass
