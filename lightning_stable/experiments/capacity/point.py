"""What is compared: a cell in a depth and a size, unconstrained or stable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Params = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A network whose hyperparameters are searched.

    Attributes:
        task: The name of the task it is trained on.
        cell: One of :data:`lightning_stable.models.CELLS`.
        layers: The number of recurrent layers.
        units: The number of units per layer.
        parameters: The number of trained parameters, those of the head included.
        stable: Whether it is projected after every step.
    """

    task: str
    cell: str
    layers: int
    units: int
    parameters: int
    stable: bool

    @property
    def name(self) -> str:
        """The name, unique among the points of an experiment: ``perceptron/lstm-1x8-stable``."""
        return f"{self.task}/{self.cell}-{self.layers}x{self.units}{'-stable' if self.stable else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a trial measured.

    Attributes:
        value: The value that the search makes best.
        details: More about the measurement, kept with the trial.
    """

    value: float
    details: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A finished trial, as the storage has it.

    Attributes:
        number: Its place among the trials of its point.
        params: Its hyperparameters.
        seed: The seed of data and training.
        steps: The number of gradient steps.
        seconds: The time it took.
        value: The value that the search makes best; None if the trial failed.
        details: The details of its :class:`Outcome`; ``{"error": ...}`` if the trial failed.
    """

    number: int
    params: Params
    seed: int
    steps: int
    seconds: float
    value: float | None
    details: dict[str, Any]
