"""What a projection callback logs, and what it shows in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_stable.callbacks._projecting import ModelProjectorCallback, projections_of
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.tensorboard import boards_of, writes_to_tensorboard
from lightning_stable.tensorboard.board import THEORY
from lightning_stable.tensorboard.charts import TARGET


def metrics_of(report: StabilityReport, norms_before: Mapping[str, float], distance: Tensor | None) -> dict[str, float]:
    """What is logged of a certificate, given the norms before the first projection and the last measured distance."""
    metrics = {"stability/rate": report.rate, "stability/input_excess": report.input_excess}
    for layer in report.layers:
        metrics[f"stability/{layer.name}/rate"] = layer.rate
        for gate, norm in layer.recurrent_norm.items():
            metrics[f"stability/{layer.name}/recurrent_norm/{gate}"] = norm
        if before := norms_before.get(layer.name):
            kept = math.hypot(*layer.recurrent_norm.values())
            metrics[f"stability/{layer.name}/recurrent_norm_kept"] = kept / before
    if distance is not None:
        metrics["stability/projection_distance"] = distance.item()
    return metrics


def log_after_step(
    trainer: Trainer, module: LightningModule, callback: ModelProjectorCallback, metrics: dict[str, float]
) -> None:
    """Log a callback's metrics after a training step, and show its target."""
    del metrics["stability/rate"]
    together = projections_of(trainer)
    if callback is together[-1]:  # all have certified by now, and the model has one rate
        metrics["stability/rate"] = max(c.report.rate for c in together if c.report is not None)
    # Lightning would drop values logged outside its own rhythm, which manual optimization does not keep to.
    # Its axis are steps or, under manual optimization, batches.
    step = trainer.global_step - 1 if module.automatic_optimization else trainer.fit_loop.total_batch_idx
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
    module.log_dict(metrics, logger=False)
    show_target(trainer, callback, step)


def show_target(trainer: Trainer, callback: ModelProjectorCallback, step: int) -> None:
    """As for the rate: the largest of all callbacks, once."""
    together = projections_of(trainer)
    for board in boards_of(trainer) if callback is together[-1] else []:
        board.scalars({TARGET: max(c.constraint.rate for c in together)}, step, THEORY)


def show_spectra(trainer: Trainer, projector: Projector, every_n_epochs: int | None) -> None:
    """Histograms of singular values or unit rates, at the validations of every n-th epoch."""
    if every_n_epochs is not None and trainer.current_epoch % every_n_epochs == 0 and writes_to_tensorboard(trainer):
        # In all processes: they agree on the ranges of the inputs.
        spectra = {f"stability/{name}": values for name, values in projector.spectra().items()}
        for board in boards_of(trainer):
            board.histograms(spectra, trainer.global_step)
