"""The second model: a module, its optimizer and everything else that training it needs and a checkpoint keeps."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_stable.shadow.build import TwinSource, made, prepare_given, windowed_copy
from lightning_stable.shadow.logs import Recorder
from lightning_stable.shadow.optimizers import ScheduleMirror, configured, follow_groups, parameter_count
from lightning_stable.shadow.projection import TwinProjection
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.step import TrainingStep
from lightning_stable.shadow.trainer import TwinTrainer
from lightning_stable.shadow.twin_guard import apart


class Twin:
    """A windowed model that starts where the trainer's model stands and follows it batch by batch.

    Every method leaves the global random generators as they were.

    Args:
        trainer: The model's trainer, at the start of training.
        model: The model, with its weights as they are trained.
        window: Number of inputs the twin's recurrent layers see.
        source: See :class:`~lightning_stable.callbacks.FeedForwardShadowCallback`.

    Attributes:
        module: The second LightningModule.
        initial: The model's parameters before training, by name.
        recorder: What the twin logs.
        projections: Projections of the twin, by the ``state_key`` of the callback they follow.

    Raises:
        MisconfigurationException: If a twin cannot be made, or is not of the model's architecture.
        ValueError: If a layer has no windowed form.
    """

    def __init__(self, trainer: Trainer, model: LightningModule, window: int, source: TwinSource) -> None:
        self.trainer, self._model, self._device = trainer, model, model.device
        reduce = trainer.strategy.reduce
        several = trainer.world_size > 1
        self.recorder = Recorder((lambda value, by: reduce(value, reduce_op=by)) if several else None)
        self.projections: dict[str, TwinProjection] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._seen_apart: set[str] = set()
        with isolated(self._device):
            self.module = windowed_copy(model, window) if source is None else made(source, model)
            self._proxy = proxy = TwinTrainer(trainer, self.module, self.recorder)
            # A user's module may read its trainer anywhere, and logs through `log`.
            self.module.trainer = proxy  # type: ignore[assignment]
            self.module.log = self.recorder.log  # type: ignore[method-assign]
            try:
                if source is not None:
                    prepare_given(self.module, model, trainer, window)
                self.initial = {name: value.detach().clone() for name, value in model.named_parameters()}
                self.optimizer, schedules = configured(self.module)
                originals = [config.scheduler for config in trainer.lr_scheduler_configs]
                self.schedules = ScheduleMirror(self.module, schedules, originals, self._monitored)
                self._followed, twins = dict(model.named_parameters()), dict(self.module.named_parameters())
                self._twins: dict[Tensor, Tensor] = {value: twins[name] for name, value in self._followed.items()}
                self._trained = 0
                self.follow()
                self.step = TrainingStep(trainer, self.module, self.optimizer)
                proxy.set_optimizers(self.optimizer, self.step.wrapped, schedules)  # type: ignore[arg-type]
                self._take_over()
            except BaseException:
                self.detach()
                raise

    def hook(self, name: str, *args: Any) -> None:
        """Call a hook of the twin's, where users may keep state."""
        with isolated(self._device):
            getattr(self.module, name)(*args)

    def train_batch(
        self, batch: Any, batch_idx: int, *, step: int, stepping: bool, states: RandomStates
    ) -> Tensor | None:
        """Do what the model did in this batch, with the same random numbers.

        Args:
            batch: The model's batch.
            batch_idx: Its index in the epoch.
            step: The trainer's ``global_step`` when the model's batch began.
            stepping: Whether the model made an optimizer step.
            states: Of the random generators when the model's batch began.

        Returns:
            The loss, divided by the number of accumulated batches; None if the twin made none.
        """
        self.recorder.begin("train", batch)
        for projection in self.projections.values():
            projection.begin_step()
        with isolated(self._device, states):
            with self._proxy.at_step(step), self._apart("train"):
                self.module.on_train_batch_start(batch, batch_idx)
                loss = self.step.run(batch, batch_idx, stepping=stepping)
            for projection in self.projections.values():
                projection.end_step()
            self.module.on_train_batch_end({} if loss is None else {"loss": loss}, batch, batch_idx)
        self.recorder.begin("train")
        if loss is not None:
            self._seen_apart.add("train")
        return loss

    def validation_batch(self, batch: Any, batch_idx: int, *dataloader_idx: int, states: RandomStates) -> Any:
        """Evaluate the twin on a validation batch; returns the output of its ``validation_step``."""
        self.recorder.begin("val", batch, *dataloader_idx)
        with isolated(self._device, states), self._apart("val"):
            self.module.on_validation_batch_start(batch, batch_idx, *dataloader_idx)
            output = self.step.evaluate(batch, batch_idx, *dataloader_idx)
            self.module.on_validation_batch_end(output, batch, batch_idx, *dataloader_idx)
        self._seen_apart.add("val")
        return output

    def start_validation(self, *, stepped: bool) -> None:
        """Set the twin to evaluation; ``stepped``: no gradients are being accumulated."""
        self._modes = [(module, module.training) for module in self.module.modules()]
        self.recorder.begin("val")
        with isolated(self._device):
            if stepped:
                self.module.on_validation_model_zero_grad()
            self.module.on_validation_model_eval()
            self.module.on_validation_start()

    def end_validation(self) -> None:
        """Set the twin back to training, each part as it was."""
        with isolated(self._device):
            self.module.on_validation_end()
            if is_overridden("on_validation_model_train", self.module):
                self.module.on_validation_model_train()
            else:
                for module, training in self._modes:
                    module.training = training
        self._modes = []
        self.recorder.begin("train")

    def end_epoch(self, stage: str, hook: str) -> None:
        """Call the twin's hook for the end of an epoch and compute what it has logged in this stage."""
        self.recorder.begin(stage)
        with isolated(self._device):
            getattr(self.module, hook)()
            self.recorder.end_epoch()

    def follow(self) -> None:
        """Freeze, unfreeze and optimize the parameters that are so in the model, as finetuning callbacks change it.

        Raises:
            MisconfigurationException: If the two optimizers do not train the same parameters then, or these are new.
        """
        for ours, theirs in self._twins.items():
            if ours.requires_grad != theirs.requires_grad:
                theirs.requires_grad_(ours.requires_grad)
        original = self.trainer.optimizers[0]
        if (count := parameter_count(original)) != self._trained:
            self.parameters()
            follow_groups(self.optimizer, original, self._twins)
            self._trained = count

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters of the model and of the twin, by name.

        Raises:
            MisconfigurationException: If some were added, removed or replaced since the twin was made.
        """
        ours, theirs = dict(self._model.named_parameters()), dict(self.module.named_parameters())
        for name in {**self._followed, **ours, **theirs}:
            first, second = ours.get(name), theirs.get(name)
            if first is None or first is not self._followed.get(name) or second is not self._twins[first]:
                raise MisconfigurationException(
                    "FeedForwardShadowCallback compares the parameters that the model had when training started; they "
                    f"must not be added, removed or replaced during training. Got a change of {name!r}."
                )
        return {**ours}, {**theirs}

    def _apart(self, stage: str) -> AbstractContextManager[None]:
        """See to it, in the first batch of a stage, that the twin leaves the model alone."""
        return nullcontext() if stage in self._seen_apart else apart(self._model, self.module)

    def detach(self) -> None:
        """Give the module its own ``log`` back and take the trainer away: it is an ordinary module again."""
        for projection in self.projections.values():
            projection.detach()
        self.projections = {}
        vars(self.module).pop("log", None)
        self.module.trainer = None

    # -------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from; plain containers and tensors."""
        scaler = self.step.scaler
        checkpoint: dict[str, Any] = {"state_dict": self.module.state_dict()}
        with isolated(self._device):
            self.module.on_save_checkpoint(checkpoint)  # what a user adds to a model's checkpoint
        return {
            "checkpoint": checkpoint,
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [schedule.scheduler.state_dict() for schedule in self.schedules.schedules],
            "schedule_positions": list(self.schedules.positions),
            "scaler": None if scaler is None else scaler.state_dict(),
            "initial": self.initial,
            "values": {name: value for name, value in self.recorder.values.items() if isinstance(value, Tensor)},
            "projections": {key: projection.state_dict() for key, projection in self.projections.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        with isolated(self._device):
            self.module.on_load_checkpoint(state["checkpoint"])
        self.module.load_state_dict(state["checkpoint"]["state_dict"], strict=self.module.strict_loading)
        self.optimizer.load_state_dict(state["optimizer"])
        for schedule, saved in zip(self.schedules.schedules, state["schedulers"], strict=True):
            schedule.scheduler.load_state_dict(saved)
        self.schedules.positions = list(state["schedule_positions"])
        if self.step.scaler is not None and state["scaler"] is not None:
            self.step.scaler.load_state_dict(state["scaler"])
        self.initial = {name: value.to(self._device) for name, value in state["initial"].items()}
        self.recorder.values = {name: value.to(self._device) for name, value in state["values"].items()}
        for key, saved in state["projections"].items():
            if key in self.projections:
                self.projections[key].load_state_dict(saved)

    def _take_over(self) -> None:
        """Optimizer and schedules go on from the model's where these have steps behind them.

        So they have when a run is resumed from a checkpoint that knows no twin.
        """
        original = self.trainer.optimizers[0]
        if original.state:
            self.optimizer.load_state_dict(copy.deepcopy(original.state_dict()))
            for schedule, config in zip(self.schedules.schedules, self.trainer.lr_scheduler_configs, strict=True):
                schedule.scheduler.load_state_dict(copy.deepcopy(config.scheduler.state_dict()))

    def _monitored(self, name: str) -> Any:
        """The twin's own value, or the model's where the twin logs none (a value of another callback's)."""
        value = self.recorder.values.get(name)
        return self.trainer.callback_metrics.get(name) if value is None else value


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a step returned."""
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss.detach() if isinstance(loss, torch.Tensor) else None
