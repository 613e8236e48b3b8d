"""What a projection callback logs, and what it shows in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_stable.callbacks._projecting import ModelProjectorCallback, projections_of, reports_of
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.tensorboard import boards_of, writes_to_tensorboard
from lightning_stable.tensorboard.board import THEORY
from lightning_stable.tensorboard.charts import TARGET


def metrics_of(report: StabilityReport, norms_before: Mapping[str, float], distance: Tensor | None) -> dict[str, float]:
    """Return what is logged of a certificate.

    Args:
        report: The certificate.
        norms_before: Frobenius norms of the recurrent weights before the first projection, by layer.
        distance: How far the last measured projection moved the weights; None before one.
    """
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
    trainer: Trainer, module: LightningModule, callback: ModelProjectorCallback, metrics: Mapping[str, float]
) -> None:
    """Log a callback's metrics after a training step, and show its target.

    Of several projection callbacks the last one logs ``stability/rate``, the largest of all.
    """
    metrics = {name: value for name, value in metrics.items() if name != "stability/rate"}
    if callback is projections_of(trainer)[-1]:  # all have certified by now, and the model has one rate
        metrics["stability/rate"] = max(report.rate for report in reports_of(trainer))
    # Lightning would drop values logged outside its own rhythm, which manual optimization does not keep to.
    # Its axis counts steps or, under manual optimization, batches.
    step = trainer.global_step - 1 if module.automatic_optimization else trainer.fit_loop.total_batch_idx
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
    module.log_dict(metrics, logger=False)
    show_target(trainer, callback, step)


def show_target(trainer: Trainer, callback: ModelProjectorCallback, step: int) -> None:
    """Show the target rate in TensorBoard; of several callbacks the last one shows the largest."""
    callbacks = projections_of(trainer)
    for board in boards_of(trainer) if callback is callbacks[-1] else []:
        board.scalars({TARGET: max(each.constraint.rate for each in callbacks)}, step, THEORY)


def show_spectra(trainer: Trainer, projector: Projector, every_n_epochs: int | None) -> None:
    """Write histograms of singular values or unit rates, if they are due in this epoch.

    Args:
        trainer: The trainer.
        projector: The projector of its model.
        every_n_epochs: The number of epochs from one writing to the next; None never writes.
    """
    if every_n_epochs is not None and trainer.current_epoch % every_n_epochs == 0 and writes_to_tensorboard(trainer):
        # In all processes: they agree on the ranges of the inputs.
        spectra = {f"stability/{name}": values for name, values in projector.spectra().items()}
        for board in boards_of(trainer):
            board.histograms(spectra, trainer.global_step)
