"""The training of one network with one choice of hyperparameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.experiments.capacity.point import Params, Point
from lightning_stable.experiments.capacity.tasks import Task
from lightning_stable.experiments.pool import one_thread
from lightning_stable.quiet import quiet

RATE = 0.99


class Anneal(Callback):
    """Warms the learning rate up over a twentieth of the steps, then lowers it to zero along a cosine.

    Args:
        peak: The largest learning rate.
        steps: The number of gradient steps in all.
    """

    # A callback anneals every model, and a scheduler of Lightning's costs more per step.

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps = peak, steps

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = annealed(self.peak, trainer.global_step, self.steps)


def annealed(peak: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0: linear up to the peak, then half a cosine down."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


@quiet()
def train(
    task: Task, point: Point, params: Params, steps: int
) -> tuple[LightningModule, dict[str, float], float | None]:
    """Train a network and validate it.

    Args:
        task: The task to train on.
        point: The network.
        params: ``learning_rate``, and ``gain``, the factor of the recurrent layers' initial weights.
        steps: The number of gradient steps.

    Returns:
        The model, its validation metrics, and the certified rate; None if the network is unconstrained.
    """
    one_thread()
    model = task.build(point.cell, point.layers, point.units)
    core = model.core
    assert isinstance(core, nn.Module)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "weight" in name:
                parameter.mul_(params["gain"])
    callbacks: list[Callback] = [Anneal(params["learning_rate"], steps)]
    projection = StabilityProjectionCallback(RATE, input_bound=task.input_bound) if point.stable else None
    if projection is not None:
        callbacks.append(projection)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        limit_val_batches=50,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=10**9,
        log_every_n_steps=10**9,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(model, task.data)
    rate = None if projection is None or projection.report is None else projection.report.rate
    (metrics,) = trainer.validate(model, task.data, verbose=False)
    return model, dict(metrics), rate
