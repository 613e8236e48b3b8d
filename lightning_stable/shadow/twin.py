"""The second model: a module, its optimizer and everything else that training it needs and a checkpoint keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_stable.shadow import step as twin_step
from lightning_stable.shadow.build import TwinSource, complete, prepare_given, twin_from, windowed_copy
from lightning_stable.shadow.checkpoint import added, surroundings, together
from lightning_stable.shadow.logs import TwinLog
from lightning_stable.shadow.optimizers import ScheduleMirror, follow_groups, parameter_count
from lightning_stable.shadow.projection import TwinProjection
from lightning_stable.shadow.rng import RandomStates, isolated
from lightning_stable.shadow.trainer import TwinTrainer
from lightning_stable.shadow.twin_guard import leaves_alone
from lightning_stable.trainers import lightning_class


class Twin:
    """A windowed model that starts where the trainer's model stands and follows it batch by batch.

    Every method leaves the global random generators as they were.

    Args:
        trainer: The model's trainer, at the start of training.
        model: The model, with its weights as they are trained.
        window: Number of inputs that the twin's recurrent layers see.
        source: See :class:`~lightning_stable.callbacks.FeedForwardShadowCallback`.
        saved: What :meth:`state_dict` returned in an earlier run, to continue from; empty to start at the model.

    Attributes:
        module: The second LightningModule.
        trainer: The trainer as the twin sees it.
        initial: The model's parameters before training, by name.
        log: What the twin logs.
        optimizer: The twin's optimizer.
        schedules: The twin's learning-rate schedulers.
        projections: Projections of the twin, by the ``state_key`` of the callback they follow; the callback adds them.

    Raises:
        MisconfigurationException: If a twin cannot be made, or is not of the model's architecture.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        window: int,
        source: TwinSource,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self._model_trainer, self._model, self._device = trainer, model, model.device
        if not trainer.optimizers or not trainer.optimizers[0].param_groups:
            raise MisconfigurationException(
                "FeedForwardShadowCallback needs `configure_optimizers` to return one optimizer, alone or with its "
                "learning-rate scheduler. Got None."
            )
        reduce = trainer.strategy.reduce
        several = trainer.world_size > 1
        self.log = TwinLog((lambda value, by: reduce(value, reduce_op=by)) if several else None)
        self.projections: dict[str, TwinProjection] = {}
        # What was in training before a validation, and the stages in which the guard has watched a batch.
        self._modes: list[tuple[nn.Module, bool]] = []
        self._guarded: set[str] = set()
        with isolated(self._device):
            self.module = windowed_copy(model, window) if source is None else twin_from(source, model)
            self.trainer = TwinTrainer(trainer, self.module, self.log)
            # A user's module may read its trainer anywhere, and logs through `log`.
            self.module.trainer = self.trainer  # type: ignore[assignment]
            self.module.log = self.log.log  # type: ignore[method-assign]
            try:
                if source is not None:
                    prepare_given(self.module, model, trainer, window)
                if saved:
                    self._restore(saved, window)
                self.initial = {name: value.detach().clone() for name, value in model.named_parameters()}
                self.trainer.set_up_optimizers()
                self.optimizer = self.trainer.optimizers[0]
                self.schedules = ScheduleMirror(
                    self.module, self.trainer.lr_scheduler_configs, trainer.lr_scheduler_configs, self._monitored
                )
                self._followed, twins = dict(model.named_parameters()), dict(self.module.named_parameters())
                self._twins: dict[Tensor, Tensor] = {value: twins[name] for name, value in self._followed.items()}
                self._num_optimized = 0  # so that the first call compares the optimizers
                self.follow()
                self.trainer.distribute()
                # A run that is resumed from a checkpoint without a twin has steps behind it.
                if trainer.optimizers[0].state and not saved:
                    self.optimizer.load_state_dict(copy.deepcopy(trainer.optimizers[0].state_dict()))
                    self.schedules.take_over()
            except BaseException:
                self.detach()
                raise

    @property
    def is_wrapped(self) -> bool:
        """Whether another module calls the twin's to run its steps, as under DistributedDataParallel."""
        return self.trainer.strategy.model is not self.module

    def hook(self, name: str, *args: Any) -> None:
        """Call a hook of the twin, where users may keep state."""
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
            states: The states of the random generators when the model's batch began.

        Returns:
            The loss, divided by the number of accumulated batches; None if the twin computed none.
        """
        self.log.begin("train", batch)
        for projection in self.projections.values():
            projection.begin_step()
        with isolated(self._device, states):
            with self.trainer.at_step(step), self._guard("train"):
                self.module.on_train_batch_start(batch, batch_idx)
                loss = twin_step.train(self.module, batch, batch_idx, stepping=stepping)
            for projection in self.projections.values():
                projection.end_step()
            self.module.on_train_batch_end({} if loss is None else {"loss": loss}, batch, batch_idx)
        self.log.begin("train")
        if loss is not None:
            self._guarded.add("train")
        return loss

    def validation_batch(self, batch: Any, batch_idx: int, *dataloader_idx: int, states: RandomStates) -> Any:
        """Evaluate the twin on a validation batch and return what its ``validation_step`` returns."""
        self.log.begin("val", batch, *dataloader_idx)
        with isolated(self._device, states), self._guard("val"):
            self.module.on_validation_batch_start(batch, batch_idx, *dataloader_idx)
            output = twin_step.validate(self.module, batch, batch_idx, *dataloader_idx)
            self.module.on_validation_batch_end(output, batch, batch_idx, *dataloader_idx)
        self._guarded.add("val")
        return output

    def start_validation(self, *, stepped: bool) -> None:
        """Set the twin to evaluation.

        Args:
            stepped: Whether the last batch ended with a step, so that no gradients are being accumulated.
        """
        self._modes = [(module, module.training) for module in self.module.modules()]
        self.log.begin("val")
        with isolated(self._device):
            if stepped:
                self.module.on_validation_model_zero_grad()
            self.module.on_validation_model_eval()
            self.module.on_validation_start()

    def end_validation(self) -> None:
        """Set the twin back to training, each part as it was."""
        with isolated(self._device):
            self.module.on_validation_end()
            if is_overridden("on_validation_model_train", self.module, parent=lightning_class(self.module)):
                self.module.on_validation_model_train()
            else:
                for module, training in self._modes:
                    module.training = training
        self._modes = []
        self.log.begin("train")

    def end_epoch(self, stage: str, hook: str) -> None:
        """Call the twin's hook for the end of an epoch and compute what it has logged in this stage."""
        self.log.begin(stage)
        with isolated(self._device):
            getattr(self.module, hook)()
            self.log.end_epoch()

    def follow(self) -> None:
        """Freeze, unfreeze and optimize the twin's parameters as finetuning callbacks do the model's.

        Raises:
            MisconfigurationException: If the two optimizers do not train the same parameters then, or these are new.
        """
        for ours, theirs in self._twins.items():
            if ours.requires_grad != theirs.requires_grad:
                theirs.requires_grad_(ours.requires_grad)
        original = self._model_trainer.optimizers[0]
        if (count := parameter_count(original)) != self._num_optimized:
            self.parameters()
            follow_groups(self.optimizer, original, self._twins)
            self._num_optimized = count

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the parameters of the model and of the twin, by name.

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

    def detach(self) -> None:
        """Give the module its own ``log`` back and take the trainer away: it is an ordinary module again."""
        for projection in self.projections.values():
            projection.detach()
        self.projections = {}
        vars(self.module).pop("log", None)
        self.module.trainer = None

    # -------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return all that training continues from, in plain containers and tensors."""
        optimizer, schedules = self.optimizer.state_dict(), self.schedules.state_dict()
        given = surroundings(self.module, optimizer, schedules["schedulers"])
        checkpoint = {**together(given, {}), "state_dict": self.module.state_dict()}
        with isolated(self._device):
            self.module.on_save_checkpoint(checkpoint)  # what a user adds to a model's checkpoint
        return {
            "checkpoint": added(checkpoint, given),
            "optimizer": optimizer,
            **schedules,
            "scaler": self.trainer.precision_plugin.state_dict(),
            "initial": self.initial,
            # A metric object may compute something else.
            "values": {name: value for name, value in self.log.values.items() if isinstance(value, Tensor)},
            "projections": {key: projection.state_dict() for key, projection in self.projections.items()},
        }

    def _restore(self, saved: Mapping[str, Any], window: int) -> None:
        """Load the weights, before there is an optimizer for them: the hook may make whole layers, as a model's may."""
        given = surroundings(self.module, saved["optimizer"], saved["schedulers"])
        checkpoint = together(given, saved["checkpoint"])
        self.module.on_load_checkpoint(checkpoint)
        complete(self.module, self._model, self._model_trainer, window)
        self.module.load_state_dict(checkpoint["state_dict"], strict=self.module.strict_loading)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, but for the weights, which the twin began with."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedules.load_state_dict(state)
        if state["scaler"]:
            self.trainer.precision_plugin.load_state_dict(state["scaler"])
        self.initial = {name: value.to(self._device) for name, value in state["initial"].items()}
        self.log.values = {name: value.to(self._device) for name, value in state["values"].items()}
        for key, saved in state["projections"].items():
            if key in self.projections:
                self.projections[key].load_state_dict(saved)

    def _guard(self, stage: str) -> AbstractContextManager[None]:
        """Return a block that refuses, in the first batch of a stage, a twin that uses the model."""
        return nullcontext() if stage in self._guarded else leaves_alone(self._model, self.module)

    def _monitored(self, name: str) -> Any:
        """Return the twin's own value, or the model's where the twin logs none (a value of another callback's)."""
        value = self.log.values.get(name)
        return self._model_trainer.callback_metrics.get(name) if value is None else value


def loss_of(output: Any) -> Tensor | None:
    """Return the detached loss in what a step returned."""
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss.detach() if isinstance(loss, torch.Tensor) else None
