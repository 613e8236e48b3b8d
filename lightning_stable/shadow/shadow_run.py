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
from lightning_stable.shadow.step_time import Clock
from lightning_stable.shadow.twin import Twin, loss_of

PredictionFunction = Callable[[LightningModule, Any], Tensor]
# Names under which a validation loss is looked for before any other with "loss" in it.
_LOSS_NAMES = ("val_loss", "val/loss", "loss")


@dataclass(frozen=True)
class Pending:
    """A batch the model has begun and the twin has not seen yet."""

    batch: Any
    batch_idx: int
    states: RandomStates
    versions: list[int]
    step: int = 0
    watching: bool = False


class Comparison:
    """Runs the twin beside the model and compares them, without changing anything of the model's.

    Args:
        trainer: The trainer of a running fit.
        model: Its model.
        twin: The twin.
        predictions: See :class:`~lightning_stable.callbacks.FeedForwardShadowCallback`.
        quiet: A context in which the model may be asked for predictions outside of its steps.

    Attributes:
        clock: Times both; the callback marks the end of the model's step.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        twin: Twin,
        predictions: PredictionFunction | None,
        quiet: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.twin, self.clock = twin, Clock(model.device)
        self._trainer, self._model, self._predictions, self._quiet = trainer, model, predictions, quiet
        # Under DDP Lightning runs whole steps through `model(...)`.
        self._model_watch = PredictionWatch(model, wrapped=trainer.model is not model)
        self._twin_watch = PredictionWatch(twin.module)
        self._pending: Pending | None = None
        self._twin_loss: Tensor | None = None
        self._stepped = True
        self._heard: dict[str, Tensor] = {}
        self._validation: dict[str, Mean] = {}
        self._batches_change = False
        self._warned_of_loss = False

    # ---------------------------------------------------------------- training
    def start_batch(self, batch: Any, batch_idx: int) -> None:
        """The model begins a batch."""
        self.twin.schedules.catch_up()
        self.twin.follow()
        step = self._trainer.global_step
        watching = self._is_due(step + 1)
        self._model_watch.begin(watching=watching and self._predictions is None)
        self._pend(batch, batch_idx, step, watching)
        self.clock.start()

    def catch_up(self) -> None:
        """Let the twin do what the model has done, up to now."""
        if self._pending is None:
            self.twin.schedules.catch_up()
            return
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.processed < progress.ready:  # the model is not done with this batch itself
            return
        pending, self._pending = self._pending, None
        self._stepped = self._trainer.global_step > pending.step
        self._twin_watch.begin(watching=pending.watching and self._predictions is None)
        self.clock.twin_start()
        batch, states = self._twins_batch(pending), pending.states
        self._twin_loss = self.twin.train_batch(
            batch, pending.batch_idx, step=pending.step, stepping=self._stepped, states=states
        )
        self.clock.twin_done()

    def end_batch(self, outputs: Any, batch: Any) -> dict[str, float]:
        """The model's batch is over.

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
        if (ratio := self.clock.ratio()) is not None:
            metrics["step_time_ratio"] = ratio
        return {name: float(value) for name, value in metrics.items()}

    def _pend(self, batch: Any, batch_idx: int, step: int = 0, watching: bool = False) -> None:
        batch = cloned(batch) if self._batches_change else shallow(batch)
        states = RandomStates.capture(self._model.device)
        self._pending = Pending(batch, batch_idx, states, versions(batch), step, watching)

    def _twins_batch(self, pending: Pending) -> Any:
        """The batch as the model got it; once the model changes one in place, a copy is made of those that follow."""
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
        interval: int = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and step % interval == 0

    # -------------------------------------------------------------- validation
    def start_validation(self) -> None:
        """The model begins a validation."""
        self.twin.start_validation(stepped=self._stepped)
        self._validation = {}

    def start_validation_batch(self, batch: Any, batch_idx: int) -> None:
        """The model begins a batch."""
        self._heard = {}
        LogTap.attach(self._model, self._hear)
        self._model_watch.begin(watching=self._predictions is None)
        self._pend(batch, batch_idx)

    def end_validation_batch(self, outputs: Any, batch: Any, *dataloader_idx: int) -> None:
        """The model's batch is over: the twin's turn. Nothing here waits for the device."""
        LogTap.detach(self._model, self._hear)
        pending, self._pending = self._pending, None
        assert pending is not None
        self._twin_watch.begin(watching=self._predictions is None)
        given, states = self._twins_batch(pending), pending.states
        output = self.twin.validation_batch(shallow(given), pending.batch_idx, *dataloader_idx, states=states)
        values, name = self._prediction_distances(batch), ""
        if losses := self._validation_losses(outputs, output):
            name, first, second = losses
            values |= {"loss": second, "loss_gap": second - first}
        size = self._size(given, name)
        for key, value in values.items():
            self._validation.setdefault(f"val_{key}", Mean()).add(value, size)

    def end_validation_epoch(self) -> dict[str, Tensor]:
        """All batches are done; returns what is to be logged, the same in all processes."""
        self.twin.end_epoch("val", "on_validation_epoch_end")
        if "val_loss" not in self._validation and not self._warned_of_loss:
            self._warned_of_loss = True
            rank_zero_warn(
                "FeedForwardShadowCallback logs no `val_loss` and no `val_loss_gap`: it needs a loss that "
                '`validation_step` returns, or logs as a number with "loss" in its name. Got none from '
                f"{type(self._model).__name__}."
            )
        metrics = {name: mean.compute(self.twin.recorder.reduce) for name, mean in self._validation.items()}
        distances = self._weight_distances()
        for name in ("weight_distance", "weight_distance_relative"):
            metrics[f"val_{name}"] = distances[name]
        self._validation = {}
        return metrics

    def _size(self, batch: Any, name: str) -> int:
        """By which Lightning weighs the batch."""
        if (given := self.twin.recorder.batch_sizes.get(name)) is not None:
            return given
        try:
            return extract_batch_size(batch)
        except MisconfigurationException:  # without tensors
            return 1

    def _hear(self, name: str, value: Any) -> None:
        if "loss" in name and not isinstance(value, Metric):
            self._heard[name] = floating(value)

    def _validation_losses(self, model_output: Any, twin_output: Any) -> tuple[str, Tensor, Tensor] | None:
        """The loss that both validation steps logged, with its name, or returned."""
        logged = self.twin.recorder.batch_values
        shared = [name for name in (*_LOSS_NAMES, *self._heard) if name in self._heard and name in logged]
        first, second = loss_of(model_output), loss_of(twin_output)
        if first is not None and second is not None and not (shared and shared[0] in _LOSS_NAMES):
            return "", floating(first), floating(second)
        return (shared[0], self._heard[shared[0]], logged[shared[0]]) if shared else None

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
                raise MisconfigurationException(
                    f"`predictions` must return a tensor. Got {type(outputs[-1]).__name__} from {self._predictions!r}."
                )
        return prediction_distances(outputs[:1], outputs[1:])

    def detach(self) -> None:
        """Leave the model as it was, and the twin as a module of its own."""
        LogTap.detach(self._model, self._hear)
        self._model_watch.detach()
        self._twin_watch.detach()
        self.twin.detach()
