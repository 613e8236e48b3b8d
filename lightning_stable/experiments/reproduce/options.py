"""The options of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightning_stable.options import ExistingFolder, OutputFolder, Positive, Seed

BudgetName = Literal["small", "paper"]


@dataclass(frozen=True)
class ReproduceOptions:
    """How to train the models of a task.

    Attributes:
        out: Folder for everything written (default: runs/TASK).
        data_dir: Folder with the data set (default: downloaded, where it is public).
        budget: How much to train.
        seed: Seed of every run.
        baselines: Train all convolutional networks, not only the usual one.
        resume: Keep the runs that are finished, train the others.
        jobs: Runs at a time (default: one per core; one on a GPU).
        only: Train these runs only, by name: lstm-stable-k10.
    """

    out: OutputFolder | None = None
    data_dir: ExistingFolder | None = None
    budget: BudgetName = "small"
    seed: Seed = 0
    baselines: bool = False
    resume: bool = False
    jobs: Positive | None = None
    only: tuple[str, ...] | None = field(default=None, metadata={"metavar": "RUN"})
