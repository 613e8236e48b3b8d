"""The options of a capacity experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_stable.experiments.capacity.budgets import BudgetName
from lightning_stable.options import ExistingFolder, OutputFolder, Positive, Seed, Text


@dataclass(frozen=True)
class CapacityOptions:
    """How to search the hyperparameters of every network.

    Attributes:
        budget: How much to search.
        out: Folder for everything written (default: runs/capacity-EXPERIMENT).
        seed: Seed of the searches.
        jobs: Processes (default: one per core; one on a GPU).
        cells: Cells to compare (default: those of the budget).
        trials: Trials per network (default: those of the budget).
        steps: Gradient steps per trial (default: those of the budget).
        resume: Go on with the searches in OUT, or join processes that use them.
        storage: Database of the searches, for many machines (default: OUT/search.db).
        data_dir: Folder with text8, for trainability (default: Python's own documentation).
    """

    budget: BudgetName = "small"
    out: OutputFolder | None = None
    seed: Seed = 0
    jobs: Positive | None = None
    cells: tuple[str, ...] | None = field(default=None, metadata={"metavar": "CELL"})
    trials: Positive | None = None
    steps: Positive | None = None
    resume: bool = False
    storage: Text | None = field(default=None, metadata={"metavar": "URL"})
    data_dir: ExistingFolder | None = None
