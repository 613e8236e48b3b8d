"""The model and its twin, batch by batch: what both did, how far they are apart, and what the twin costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from lightning_stable.shadow.clock import Clock
from lightning_stable.shadow.distances import prediction_distances, weight_distances
from lightning_stable.shadow.predictions import PredictionWatch
from lightning_stable.shadow.recorder import LogTap
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.twin import Twin, loss_of, shallow

PredictionFunction = Callable[[LightningModule, Any], Tensor]
# Names under which a validation loss is looked for before any other with "loss" in it.
_LOSS_NAMES = ("val_loss", "loss")


@dataclass(frozen=True)
class Pending:
    """A batch the model has begun and the twin has not seen yet."""

    batch: Any
    batch_idx: int
    states: RandomStates
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
        self._validation: dict[str, list[Tensor]] = {}

    # ---------------------------------------------------------------- training
    def start_batch(self, batch: Any, batch_idx: int) -> None:
        """The model begins a batch."""
        self.twin.schedules.catch_up()
        step = self._trainer.global_step
        watching = self._is_due(step + 1)
        self._model_watch.begin(watching=watching and self._predictions is None)
        states = RandomStates.capture(self._model.device)
        self._pending = Pending(shallow(batch), batch_idx, states, step, watching)
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
        self._twin_loss = self.twin.train_batch(
            pending.batch, pending.batch_idx, stepping=self._stepped, states=pending.states
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
        self._pending = Pending(shallow(batch), batch_idx, RandomStates.capture(self._model.device))

    def end_validation_batch(self, outputs: Any, batch: Any, *dataloader_idx: int) -> None:
        """The model's batch is over: the twin's turn. Nothing here waits for the device."""
        LogTap.detach(self._model, self._hear)
        pending, self._pending = self._pending, None
        assert pending is not None
        self._twin_watch.begin(watching=self._predictions is None)
        states = pending.states
        output = self.twin.validation_batch(pending.batch, pending.batch_idx, *dataloader_idx, states=states)
        losses = self._validation_losses(outputs, output)
        if losses is not None:
            self._collect({"val_loss": losses[1], "val_loss_gap": losses[1] - losses[0]})
        self._collect({f"val_{name}": value for name, value in self._prediction_distances(batch).items()})

    def end_validation_epoch(self) -> dict[str, Tensor]:
        """All batches are done; returns what is to be logged."""
        self.twin.end_epoch("val", "on_validation_epoch_end")
        metrics = {name: torch.stack(values).mean() for name, values in self._validation.items()}
        distances = self._weight_distances()
        for name in ("weight_distance", "weight_distance_relative"):
            metrics[f"val_{name}"] = distances[name]
        self._validation = {}
        return metrics

    def _collect(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._validation.setdefault(name, []).append(value)

    def _hear(self, name: str, value: Any) -> None:
        if "loss" in name and not isinstance(value, Metric):
            self._heard[name] = torch.as_tensor(value).detach()

    def _validation_losses(self, model_output: Any, twin_output: Any) -> tuple[Tensor, Tensor] | None:
        """What both validation steps returned as their loss, or logged under a name that says so."""
        first, second = loss_of(model_output), loss_of(twin_output)
        if first is not None and second is not None:
            return first, second
        logged = self.twin.recorder.batch_values
        shared = [name for name in (*_LOSS_NAMES, *self._heard) if name in self._heard and name in logged]
        return (self._heard[shared[0]], logged[shared[0]]) if shared else None

    # --------------------------------------------------------------- distances
    def _weight_distances(self) -> dict[str, Tensor]:
        model, twin = (dict(module.named_parameters()) for module in (self._model, self.twin.module))
        return weight_distances(model, twin, self.twin.initial)

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
        return prediction_distances(outputs[:1], outputs[1:])

    def detach(self) -> None:
        """Leave the model as it was, and the twin as a module of its own."""
        LogTap.detach(self._model, self._hear)
        self._model_watch.detach()
        self._twin_watch.detach()
        self.twin.detach()


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the block: running statistics must not count what the model was not trained on."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
