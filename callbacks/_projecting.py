"""The projector of the model a callback watches, and what is known of it when no run is on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_stable.stability import Constraint, InputSet, StabilityReport
from lightning_stable.stability.projection.every_step import State
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.trainers import callbacks_of

# Autocast rounds the weights again when they are used: aim far enough inside for the rounded ones to be stable too.
_AUTOCAST_MARGIN = {"bf16-mixed": 2.0**-8, "16-mixed": 2.0**-10}


class ModelProjectorCallback(Callback):
    """A callback with a projector of the trainer's model; when it projects is for the subclass to say."""

    def __init__(self, constraint: Constraint, modules: str | Iterable[str] | None, input_bound: Any) -> None:
        self.constraint = constraint
        self.modules = [modules] if isinstance(modules, str) else modules if modules is None else list(modules)
        if self.modules == []:
            raise ValueError("`modules` must name at least one pattern, or be None for all modules. Got [].")
        self.input_bound = input_bound
        self.followers: list[Callable[[], None]] = []
        self._hooks: list[RemovableHandle] = []
        self._projector: Projector | None = None
        self._forget()

    @property
    def input_ranges(self) -> Mapping[str, Tensor]:
        """Maxima of ``-x`` and ``x`` of the inputs recorded so far, shape ``(2, features)``, by module name."""
        return self._input_ranges if self._projector is None else self._projector.monitor.ranges

    def known_inputs(self, module_name: str) -> InputSet | None:
        """The input set of a recurrent module, where it is given or follows from the model; None outside of runs."""
        return None if self._projector is None else self._projector.known_inputs(module_name)

    def projector_for(
        self, trainer: Trainer, module: nn.Module, *, training: bool = True, ranges: Mapping[str, Tensor] | None = None
    ) -> Projector:
        """A projector with this callback's settings for any module, such as a second model beside the trainer's.

        Args:
            trainer: Its precision and number of processes count.
            module: A module in which ``modules`` finds recurrences.
            training: Whether dropout counts as active.
            ranges: Input ranges known already, by module name.
        """
        return Projector(
            module,
            self.constraint,
            input_bound=self.input_bound,
            modules=self.modules,
            training=training,
            margin=_AUTOCAST_MARGIN.get(str(trainer.precision), 0.0),
            ranges=ranges,
            reduce_max=_reduce_max if trainer.world_size > 1 else None,
        )

    @contextmanager
    def recording_paused(self) -> Iterator[None]:
        """A block in which inputs of the model are neither recorded nor compared with their sets."""
        if self._projector is None:
            yield
            return
        monitor = self._projector.monitor
        recording, checking = monitor.recording, monitor.checking
        monitor.recording = monitor.checking = False
        try:
            yield
        finally:
            monitor.recording, monitor.checking = recording, checking

    @property
    def _attached(self) -> Projector:
        assert self._projector is not None
        return self._projector

    def _forget(self) -> None:
        self.report: StabilityReport | None = None
        self._input_ranges: dict[str, Tensor] = {}
        self._projector_state: State = {}
        self._warned: set[str] = set()

    def _watch(self, trainer: Trainer, module: nn.Module, *, training: bool) -> Projector:
        self._projector = self.projector_for(trainer, module, training=training, ranges=self._input_ranges)
        self._projector.load_state_dict(self._projector_state)
        self._projector.monitor.recording = not training  # only what the model trains on
        self._projector.attach()
        return self._projector

    def _unwatch(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks, self.followers = [], []
        if self._projector is not None:
            self._projector.detach()
            self._input_ranges = {name: seen.clone() for name, seen in self._projector.monitor.ranges.items()}
            self._projector_state = self._projector.state_dict()
        self._projector = None

    def _settle(self) -> StabilityReport:
        """Project what steps since the last projection have moved, verified in float64, and certify."""
        self._project_between_steps()
        return self._certify()

    def _project_between_steps(self) -> None:
        self._attached.project(strict=True)
        for follower in self.followers:
            follower()

    def _certify(self, *, leading_only: bool = False) -> StabilityReport:
        self.report = self._attached.certify(leading_only=leading_only)
        for layer in self.report.layers:
            is_left = layer.input_excess > 0 or (layer.reason is not None and layer.rate < math.inf)
            if is_left and layer.name not in self._warned:
                self._warned.add(layer.name)
                reason = layer.reason or (
                    f"Inputs left their set by {layer.input_excess:.4g}: the rate rests on none, but the windows do."
                )
                rank_zero_warn(f"The certificate of {layer.name!r} does not cover this run. {reason}")
        return self.report


def projections_of(trainer: Trainer) -> list[ModelProjectorCallback]:
    """Those of a trainer's callbacks that project its model, in their order."""
    return callbacks_of(trainer, ModelProjectorCallback)


def known_inputs(trainer: Trainer, module_name: str) -> InputSet | None:
    """What the projection callbacks of a trainer know about the inputs of a recurrent module."""
    found = (callback.known_inputs(module_name) for callback in projections_of(trainer))
    return next((inputs for inputs in found if inputs is not None), None)


def _reduce_max(tensor: Tensor) -> Tensor:
    # strategy.reduce would wait for all processes at a barrier first, and the device with them, after every step.
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor
