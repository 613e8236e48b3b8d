"""The model and its twin, batch by batch: what both did, how far they are apart, and what the twin costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

from lightning_stable.copying import evaluating
from lightning_stable.shadow.batches import cloned, shallow, versions
from lightning_stable.shadow.distances import prediction_distances, weight_distances
from lightning_stable.shadow.logs import LogTap, Mean, floating
from lightning_stable.shadow.predictions import PredictionWatch
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.step_time import StepTime
from lightning_stable.shadow.twin import Twin, loss_of
from lightning_stable.trainers import logging_interval

PredictionFunction = Callable[[LightningModule, Any], Tensor]
# Names under which a validation loss is looked for before any other with "loss" in it.
_LOSS_NAMES = ("val_loss", "val/loss", "loss")


@dataclass(frozen=True)
class Pending:
    """A batch that the model has begun and the twin has not seen yet.

    Attributes:
        batch: The batch as the model got it.
        batch_idx: Its index in the epoch.
        states: The states of the random generators when the model's batch began.
        versions: How often each tensor of the batch had been changed in place by then.
        step: The trainer's ``global_step`` then; 0 in a validation.
        watching: Whether this batch's predictions are compared.
    """

    batch: Any
    batch_idx: int
    states: RandomStates
    versions: list[int]
    step: int = 0
    watching: bool = False


class ShadowRun:
    """Runs the twin beside the model and compares them, without changing anything of the model's.

    Args:
        trainer: The trainer of a running fit.
        model: Its model.
        twin: The twin.
        predictions: See :class:`~lightning_stable.callbacks.FeedForwardShadowCallback`.
        quiet: A context in which the model may be asked for predictions outside of its steps.

    Attributes:
        twin: The twin.
        step_time: The times of both; the callback marks the end of the model's step.
        interrupted: The index of the batch in which a step of the twin has begun and not ended; None otherwise.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        twin: Twin,
        predictions: PredictionFunction | None,
        quiet: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.twin, self.step_time = twin, StepTime(model.device)
        self._trainer, self._model, self._predictions, self._quiet = trainer, model, predictions, quiet
        # Under DDP Lightning runs whole steps through `model(...)`.
        self._model_watch = PredictionWatch(model, wrapped=trainer.model is not model)
        self._twin_watch = PredictionWatch(twin.module, wrapped=twin.is_wrapped)
        self._pending: Pending | None = None
        self.interrupted: int | None = None
        self._twin_loss: Tensor | None = None
        self._stepped = True  # no gradients are being accumulated before the first batch
        self._logged: dict[str, Tensor] = {}  # what the model logs with "loss" in its name in a validation batch
        self._validation: dict[str, Mean] = {}
        self._batches_change = False
        self._warned_of_loss = False

    # ---------------------------------------------------------------- training
    def start_batch(self, batch: Any, batch_idx: int) -> None:
        """Note what the twin will need of a batch that the model begins."""
        self.twin.schedules.catch_up()
        self.twin.follow()
        step = self._trainer.global_step
        watching = self._is_due(step + 1)
        self._model_watch.begin(watching=watching and self._predictions is None)
        self._pend(batch, batch_idx, step, watching)
        self.step_time.start()

    def catch_up(self) -> None:
        """Let the twin do what the model has done, up to now."""
        if self._pending is None:
            self.twin.schedules.catch_up()
            return
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.processed < progress.ready:  # the model is not done with this batch itself
            return
        pending, self._pending = self._pending, None
        self.interrupted = pending.batch_idx
        self._stepped = self._trainer.global_step > pending.step
        self._twin_watch.begin(watching=pending.watching and self._predictions is None)
        self.step_time.twin_start()
        batch, states = self._twins_batch(pending), pending.states
        self._twin_loss = self.twin.train_batch(
            batch, pending.batch_idx, step=pending.step, stepping=self._stepped, states=states
        )
        self.interrupted = None
        self.step_time.twin_done()

    def end_batch(self, outputs: Any, batch: Any) -> dict[str, float]:
        """Let the twin catch up with the model's batch, and compare them if a log line is due.

        Args:
            outputs: What the model's ``training_step`` returned, as Lightning hands it to callbacks.
            batch: The batch.

        Returns:
            What is to be logged now; empty outside of Lightning's logging rhythm.
        """
        self.catch_up()
        if not (self._stepped and self._is_due(self._trainer.global_step)):
            return {}
        metrics: dict[str, Tensor | float] = {}
        model_loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if model_loss is not None and self._twin_loss is not None:
            accumulated = self._trainer.accumulate_grad_batches  # by which Lightning divides
            metrics["loss"] = self._twin_loss * accumulated
            metrics["loss_gap"] = (self._twin_loss - model_loss) * accumulated
        metrics.update(self._weight_distances())
        metrics.update(self._prediction_distances(batch))
        if (ratio := self.step_time.ratio()) is not None:
            metrics["step_time_ratio"] = ratio
        return {name: float(value) for name, value in metrics.items()}

    def _pend(self, batch: Any, batch_idx: int, step: int = 0, watching: bool = False) -> None:
        batch = cloned(batch) if self._batches_change else shallow(batch)
        states = RandomStates.capture(self._model.device)
        self._pending = Pending(batch, batch_idx, states, versions(batch), step, watching)

    def _twins_batch(self, pending: Pending) -> Any:
        """Return the batch as the model got it; once the model changes one in place, a copy of those that follow."""
        if versions(pending.batch) == pending.versions:
            return pending.batch
        self._batches_change = True
        rank_zero_warn(
            f"{type(self._model).__name__} changes its batches in place. The twin sees the first one as the model left "
            "it, so that the two part here; from the next on, it gets a copy made before the model's step. Let the "
            f"model change a copy. Got a change in batch {pending.batch_idx}."
        )
        return cloned(pending.batch)  # the twin's changes must not reach the data

    def _is_due(self, step: int) -> bool:
        interval = logging_interval(self._trainer)
        return interval > 0 and step % interval == 0

    # -------------------------------------------------------------- validation
    def start_validation(self) -> None:
        """Begin a validation of the twin with the model's."""
        self.twin.start_validation(stepped=self._stepped)
        self._validation = {}

    def start_validation_batch(self, batch: Any, batch_idx: int) -> None:
        """Note what the twin will need of a validation batch that the model begins."""
        self._logged = {}
        LogTap.attach(self._model, self._note_loss)
        self._model_watch.begin(watching=self._predictions is None)
        self._pend(batch, batch_idx)

    def end_validation_batch(self, outputs: Any, batch: Any, *dataloader_idx: int) -> None:
        """Evaluate the twin on the model's batch and compare them; nothing here waits for the device."""
        LogTap.detach(self._model, self._note_loss)
        pending, self._pending = self._pending, None
        assert pending is not None
        self._twin_watch.begin(watching=self._predictions is None)
        twins_batch, states = self._twins_batch(pending), pending.states
        output = self.twin.validation_batch(shallow(twins_batch), pending.batch_idx, *dataloader_idx, states=states)
        values, name = self._prediction_distances(batch), ""
        if losses := self._validation_losses(outputs, output):
            name, first, second = losses
            values |= {"loss": second, "loss_gap": second - first}
        size = self._size(twins_batch, name)
        for key, value in values.items():
            self._validation.setdefault(f"val_{key}", Mean()).add(value, size)

    def end_validation_epoch(self) -> dict[str, Tensor]:
        """Return what is to be logged of all batches, the same in all processes."""
        self.twin.end_epoch("val", "on_validation_epoch_end")
        if "val_loss" not in self._validation and not self._warned_of_loss:
            self._warned_of_loss = True
            rank_zero_warn(
                "FeedForwardShadowCallback logs no `val_loss` and no `val_loss_gap`: it needs a loss that "
                '`validation_step` returns, or logs as a number with "loss" in its name. Got none from '
                f"{type(self._model).__name__}."
            )
        metrics = {name: mean.compute(self.twin.log.reduce) for name, mean in self._validation.items()}
        distances = self._weight_distances()
        for name in ("weight_distance", "weight_distance_relative"):
            metrics[f"val_{name}"] = distances[name]
        self._validation = {}
        return metrics

    def _size(self, batch: Any, name: str) -> int:
        """Return the size by which Lightning weighs the batch."""
        if (size := self.twin.log.batch_sizes.get(name)) is not None:
            return size
        try:
            return extract_batch_size(batch)
        except MisconfigurationException:  # without tensors
            return 1

    def _note_loss(self, name: str, value: Any) -> None:
        if "loss" in name and not isinstance(value, Metric):
            self._logged[name] = floating(value)

    def _validation_losses(self, model_output: Any, twin_output: Any) -> tuple[str, Tensor, Tensor] | None:
        """Return the name and both values of the loss that the validation steps logged, or returned without a name."""
        logged = self.twin.log.batch_values
        shared = [name for name in (*_LOSS_NAMES, *self._logged) if name in self._logged and name in logged]
        first, second = loss_of(model_output), loss_of(twin_output)
        if first is not None and second is not None and not (shared and shared[0] in _LOSS_NAMES):
            return "", floating(first), floating(second)
        return (shared[0], self._logged[shared[0]], logged[shared[0]]) if shared else None

    # --------------------------------------------------------------- distances
    def _weight_distances(self) -> dict[str, Tensor]:
        return weight_distances(*self.twin.parameters(), self.twin.initial)

    def _prediction_distances(self, batch: Any) -> dict[str, Tensor]:
        if self._predictions is None:
            return prediction_distances(self._model_watch.take(), self._twin_watch.take())
        states = RandomStates.capture(self._model.device)
        outputs = []
        for module in (self._model, self.twin.module):
            with (
                torch.no_grad(),
                isolated(self._model.device, states),
                evaluating(module),
                self._quiet(),
                self._trainer.precision_plugin.val_step_context(),
            ):
                outputs.append(self._predictions(module, batch))
            if not isinstance(outputs[-1], Tensor):
                raise TypeError(
                    f"`predictions` must return a tensor. Got {type(outputs[-1]).__name__} from {self._predictions!r}."
                )
        return prediction_distances(outputs[:1], outputs[1:])

    def detach(self) -> None:
        """Leave the model as it was, and the twin as a module of its own."""
        LogTap.detach(self._model, self._note_loss)
        self._model_watch.detach()
        self._twin_watch.detach()
        self.twin.detach()
