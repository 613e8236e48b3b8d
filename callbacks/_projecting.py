"""The projector of the model that a callback watches, and what is known of the model between runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_stable.callbacks._arguments import checked_input_bound, fitting_recurrences, module_patterns
from lightning_stable.callbacks._class_path import RecordsClassPath
from lightning_stable.callbacks._portable import Portable
from lightning_stable.stability import Constraint, InputSet, StabilityReport
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.stability.projection.every_step import State
from lightning_stable.stability.projection.projector import Left, Projector
from lightning_stable.trainers import callbacks_of

# Autocast rounds the weights again when they are used: aim far enough inside for the rounded ones to be stable too.
_AUTOCAST_MARGIN = {"bf16-mixed": 2.0**-8, "16-mixed": 2.0**-10}


class Follower(Protocol):
    """A second model beside the trainer's, which is projected between steps whenever the trainer's is."""

    def settle(self) -> None:
        """Project it."""

    def settled(self) -> AbstractContextManager[None]:
        """Project it inside the block alone."""


class ModelProjectorCallback(RecordsClassPath, Portable):
    """A callback with a projector of the trainer's model; its subclass says when to project.

    Args:
        constraint: The stable set.
        modules: Patterns of the names of the recurrent modules to project; None takes all.
        input_bound: What is known about the inputs, see :func:`lightning_stable.certify`.

    Attributes:
        constraint: The stable set.
        modules: The patterns as a list; None for all modules.
        input_bound: What is known about the inputs.
        report: The latest certificate; None before the first one, and after a run that failed.
        followers: Second models beside the trainer's, which are projected with it between steps; see
            :class:`Follower`. The fit's end forgets them.
    """

    def __init__(self, constraint: Constraint, modules: str | Iterable[str] | None, input_bound: InputBound) -> None:
        self.constraint = constraint
        self.modules = module_patterns(modules)
        self.input_bound = checked_input_bound(input_bound)
        self.followers: list[Follower] = []
        # There is a projector, and hooks of the optimizers, only while a model is watched.
        self._projector: Projector | None = None
        self._hooks: list[RemovableHandle] = []
        self._looking: AbstractContextManager[None] | None = None  # while a validation sees projected weights
        self._trained: dict[str, Tensor] = {}  # the weights before, meanwhile
        self._forget()

    @property
    def input_ranges(self) -> Mapping[str, Tensor]:
        """Maxima of ``-x`` and ``x`` of the inputs recorded so far, shape ``(2, features)``, by module name."""
        return self._input_ranges if self._projector is None else self._projector.monitor.ranges

    def known_inputs(self, module_name: str) -> InputSet | None:
        """Return the input set of a recurrent module, if it is given or follows from the model; None between runs."""
        return None if self._projector is None else self._projector.known_inputs(module_name)

    def projector_for(
        self, trainer: Trainer, module: nn.Module, *, training: bool = True, ranges: Mapping[str, Tensor] | None = None
    ) -> Projector:
        """Return a projector with this callback's settings for any module, such as a second model.

        Args:
            trainer: The trainer, whose precision and number of processes count.
            module: A module in which ``modules`` finds recurrences.
            training: Whether dropout counts as active.
            ranges: Input ranges recorded before, by module name.

        Raises:
            MisconfigurationException: If the module has no recurrences to project.
            ValueError: If an argument does not fit their cells.
        """
        fitting_recurrences(module, self.modules)
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

    def evaluation_report(self, trainer: Trainer, module: nn.Module) -> StabilityReport:
        """Certify a module in evaluation mode for the inputs seen so far, as far as the run bears it out."""
        report = self.projector_for(trainer, module, training=False, ranges=self.input_ranges).certify()
        return report if self._projector is None else self._projector.without_broken_premises(report)

    @contextmanager
    def recording_paused(self) -> Iterator[None]:
        """Neither record the model's inputs nor compare them with their sets inside the block."""
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
        """Begin a new run: nothing is known of its model."""
        self.report: StabilityReport | None = None
        self._input_ranges: dict[str, Tensor] = {}
        self._projector_state: State = {}
        self._left: Left = {}
        self._unprojected: dict[str, Tensor] = {}  # from a checkpoint, or of a run that failed
        self._warned: set[str] = set()

    def _leave_run(self) -> None:
        self._input_ranges = {name: seen.detach().to("cpu", copy=True) for name, seen in self.input_ranges.items()}
        self._left = copy.deepcopy(self._left if self._projector is None else self._projector.left_premises)
        self._projector, self._projector_state = None, {}
        self._hooks, self.followers, self._looking = [], [], None
        self._unprojected, self._trained = {}, {}
        self._warned = set(self._warned)
        self.report = None if self.report is None else self.report.without_windows()

    def _watch(self, trainer: Trainer, module: nn.Module, *, training: bool) -> Projector:
        self._projector = self.projector_for(trainer, module, training=training, ranges=self._input_ranges)
        self._projector.load_state_dict(self._projector_state)
        self._projector.remember_left(self._left)
        # In a fit only training batches are recorded, and the subclass says when.
        self._projector.monitor.recording = not training
        self._projector.attach()
        return self._projector

    def _unwatch(self) -> None:
        self._look_away()
        for handle in self._hooks:
            handle.remove()
        self._hooks, self.followers = [], []
        if self._projector is not None:
            self._projector.detach()
            self._input_ranges = {name: seen.clone() for name, seen in self._projector.monitor.ranges.items()}
            self._projector_state = self._projector.state_dict()
            self._left = self._projector.left_premises
        self._projector = None

    def _settle(self) -> StabilityReport:
        """Project the weights for good, verified in float64, and certify them: before training and after it."""
        self._attached.project(strict=True)
        for follower in self.followers:
            follower.settle()
        return self._certify()

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Project what steps since the last projection have moved, verified in float64, inside the block alone.

        Whoever looks at the weights between steps sees stable ones, and training goes on from its own.
        """
        with ExitStack() as stack:
            stack.enter_context(self._attached.projected())
            for follower in self.followers:
                stack.enter_context(follower.settled())
            yield

    def _look(self) -> None:
        self._look_away()
        self._trained = self._attached.weights()
        self._looking = self._settled()
        self._looking.__enter__()

    def _look_away(self) -> None:
        if self._looking is not None:
            looking, self._looking, self._trained = self._looking, None, {}
            looking.__exit__(None, None, None)

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
    """Return the trainer's callbacks that project its model, in their order."""
    return callbacks_of(trainer, ModelProjectorCallback)


def reports_of(trainer: Trainer) -> list[StabilityReport]:
    """Return the latest certificates of the trainer's projection callbacks, of those that have one."""
    return [callback.report for callback in projections_of(trainer) if callback.report is not None]


def known_inputs(trainer: Trainer, module_name: str) -> InputSet | None:
    """Return what the trainer's projection callbacks know about the inputs of a recurrent module."""
    known = (callback.known_inputs(module_name) for callback in projections_of(trainer))
    return next((inputs for inputs in known if inputs is not None), None)


def _reduce_max(tensor: Tensor) -> Tensor:
    # strategy.reduce would wait for all processes at a barrier first, and the device with them, after every step.
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor
