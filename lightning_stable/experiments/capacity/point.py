"""What is compared: a cell in a depth and a size, unconstrained or stable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Params = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A network whose hyperparameters are searched.

    Attributes:
        task: What it is trained on.
        cell: One of :data:`lightning_stable.models.CELLS`.
        layers: Recurrent layers.
        units: Units per layer.
        parameters: Trained numbers, those of the head included.
        stable: Projected after every step.
    """

    task: str
    cell: str
    layers: int
    units: int
    parameters: int
    stable: bool

    @property
    def name(self) -> str:
        """Unique among the points of an experiment: ``perceptron/lstm-1x8-stable``."""
        return f"{self.task}/{self.cell}-{self.layers}x{self.units}{'-stable' if self.stable else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a trial measured.

    Attributes:
        value: What the search makes best.
        details: More about it, kept with the trial.
    """

    value: float
    details: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A finished trial, as the storage has it.

    Attributes:
        number: In the order of its point.
        params: Hyperparameters.
        seed: Of data and training.
        steps: Gradient steps.
        seconds: Time it took.
        value: What the search makes best; None if it failed.
        details: From :class:`Outcome`; ``{"error": ...}`` if it failed.
    """

    number: int
    params: Params
    seed: int
    steps: int
    seconds: float
    value: float | None
    details: dict[str, Any]
