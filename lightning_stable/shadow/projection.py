"""Projecting the twin as the model is projected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.hooks import after_steps
from lightning_stable.stability.projection.projector import Projector


class ModelProjection(Protocol):
    """The projection of the model, which the twin's follows."""

    @property
    def every_n_steps(self) -> int:
        """After how many optimizer steps the model is projected."""

    @property
    def steps(self) -> int:
        """How many steps the model's optimizer has made."""

    @property
    def refinements(self) -> int:
        """How often the norms the model is projected in were fitted to its weights."""


class TwinProjection:
    """A projector of the twin, at the rhythm of the model's.

    Args:
        projector: The projector of the twin; its monitor records the inputs of the twin's recurrences.
        leader: The model's projection.
        optimizer: The twin's optimizer.

    Attributes:
        steps: Steps of the twin's optimizer; at first the model's, from which the twin starts.
    """

    def __init__(self, projector: Projector, leader: ModelProjection, optimizer: Optimizer) -> None:
        self._projector, self._leader = projector, leader
        self.steps = leader.steps
        self._refinements = leader.refinements
        projector.monitor.recording = projector.monitor.checking = False
        projector.attach()
        projector.refine(missing_only=True)
        self._hook = after_steps(optimizer, self._after_step)
        self._wrapped = not isinstance(optimizer, Optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if self.steps % self._leader.every_n_steps == 0:
            self._projector.project(strict=False)

    def settle(self) -> None:
        """Project between steps, as the model was."""
        self._projector.project(strict=True)
        self._refine()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Project inside the block alone, as the model is for a validation."""
        with self._projector.projected():
            self._refine()
            yield

    def begin_step(self) -> None:
        """Record inputs from now on: they are training inputs."""
        self._projector.monitor.recording = True

    def end_step(self) -> None:
        """Stop recording, now that the twin has caught up with the model."""
        self._projector.monitor.recording = False
        if self._hook is None:
            self.steps = self._leader.steps
        if self._wrapped and self.steps % self._leader.every_n_steps == 0:
            self._projector.project(strict=False)  # what a wrapper of the optimizer did after its step

    def _refine(self) -> None:
        if self._refinements < self._leader.refinements:
            self._refinements = self._leader.refinements
            self._projector.refine()

    def state_dict(self) -> dict[str, Any]:
        """Return the steps, the input ranges, and what the projector carries from step to step."""
        ranges = {name: seen.cpu() for name, seen in self._projector.monitor.ranges.items()}
        return {
            "steps": self.steps,
            "refinements": self._refinements,
            "input_ranges": ranges,
            "projector": self._projector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.steps = state["steps"]
        self._refinements = state.get("refinements", self._refinements)
        ranges: dict[str, Tensor] = state["input_ranges"]
        self._projector.remember(ranges)
        self._projector.load_state_dict(state["projector"])

    def detach(self) -> None:
        """Stop projecting."""
        if self._hook is not None:
            self._hook.remove()
        self._projector.detach()
