"""How much an experiment searches: what a laptop can, or as much as the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BudgetName = Literal["small", "paper"]


@dataclass(frozen=True)
class Budget:
    """The grid of an experiment and the work per point of it.

    Attributes:
        cells: The cells that are compared.
        layers: The depths.
        sizes: The sizes: parameters (bits, trainability) or units per layer (reals).
        trials: The number of hyperparameters tried per point.
        steps: The number of gradient steps per trial.
        tasks: The tasks of the trainability experiment.
    """

    cells: tuple[str, ...]
    layers: tuple[int, ...]
    sizes: tuple[int, ...]
    trials: int
    steps: int
    tasks: tuple[str, ...] = ()


_SMALL, _ALL = ("rnn", "gru", "lstm"), ("rnn", "irnn", "ugrnn", "gru", "lstm", "intersection")
_DEPTHS = (1, 2, 4, 8)
BUDGETS: dict[str, dict[str, Budget]] = {
    "bits": {
        "small": Budget(_SMALL, (1,), (100, 200, 320, 450), 3, 1500),
        "paper": Budget(_ALL, _DEPTHS, (256, 512, 1024, 2048, 4096, 8192), 60, 50_000),
    },
    "reals": {
        "small": Budget(_SMALL, (1,), (4, 8, 12), 5, 800),
        "paper": Budget(_ALL, _DEPTHS, (8, 16, 32, 64, 128), 60, 50_000),
    },
    "trainability": {
        "small": Budget(_SMALL, (1, 2), (4000,), 3, 300, ("function", "parentheses", "arithmetic", "text")),
        "paper": Budget(
            _ALL,
            _DEPTHS,
            (10_000, 40_000),
            60,
            20_000,
            ("perceptron", "memory", "function", "parentheses", "arithmetic", "text"),
        ),
    },
}
