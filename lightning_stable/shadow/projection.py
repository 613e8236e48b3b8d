"""Projecting the twin as the model is projected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.stability.projection.projector import Projector


class TwinProjection:
    """One projector of the twin, at the rhythm of the model's.

    Args:
        projector: Of the twin; its monitor records the inputs of the twin's recurrences.
        every_n_steps: Project after every n-th step of the twin's optimizer.
        model_steps: Returns the number of steps the model's optimizer has made.
        optimizer: The twin's.
    """

    def __init__(
        self, projector: Projector, every_n_steps: int, model_steps: Callable[[], int], optimizer: Optimizer
    ) -> None:
        self.projector, self._every, self._model_steps = projector, every_n_steps, model_steps
        self.steps = self._followed = model_steps()
        self._due = False
        projector.monitor.recording = projector.monitor.checking = False
        projector.attach()
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if self.steps % self._every == 0:
            self.projector.project(strict=False)

    def settle(self) -> None:
        """The model was projected between steps; the twin is, too, as soon as it has made the model's last step."""
        self._due = self._model_steps() > self._followed
        if not self._due:
            self.projector.project(strict=True)

    def begin_step(self) -> None:
        """Inputs from now on are training inputs."""
        self.projector.monitor.recording = True

    def end_step(self) -> None:
        """The twin has caught up with the model."""
        self.projector.monitor.recording = False
        self._followed = self._model_steps()
        if self._due:
            self._due = False
            self.projector.project(strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Steps, input ranges, and what the projector carries from step to step."""
        ranges = {name: seen.cpu() for name, seen in self.projector.monitor.ranges.items()}
        return {"steps": self.steps, "input_ranges": ranges, "projector": self.projector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.steps = state["steps"]
        ranges: dict[str, Tensor] = state["input_ranges"]
        self.projector.remember(ranges)
        self.projector.load_state_dict(state.get("projector", {}))

    def detach(self) -> None:
        """Stop projecting."""
        self._hook.remove()
        self.projector.detach()
