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
        seeds: Seeds of every model; three give a spread.
        epochs: Epochs at most (default: the budget's).
        hidden_size: Units of a recurrent layer (default: the budget's).
        windows: Windows of the truncated models (default: the budget's).
        baselines: Train all convolutional networks, not only the usual one.
        resume: Keep what is finished, and go on with what was stopped after its last whole epoch.
        jobs: Runs at a time (default: one per core; one on a GPU).
        only: Train these models only, by name: lstm-stable-k10.
    """

    out: OutputFolder | None = None
    data_dir: ExistingFolder | None = None
    budget: BudgetName = "small"
    seeds: tuple[Seed, ...] = field(default=(0,), metadata={"metavar": "SEED"})
    epochs: Positive | None = None
    hidden_size: Positive | None = None
    windows: tuple[Positive, ...] | None = field(default=None, metadata={"metavar": "WINDOW"})
    baselines: bool = False
    resume: bool = False
    jobs: Positive | None = None
    only: tuple[str, ...] | None = field(default=None, metadata={"metavar": "RUN"})
