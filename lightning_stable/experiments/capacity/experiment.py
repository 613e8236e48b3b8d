"""What an experiment is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import optuna
from rich.table import Table

from lightning_stable.experiments.capacity.budgets import Budget
from lightning_stable.experiments.capacity.point import Outcome, Params, Point, Trial
from lightning_stable.experiments.results import Row


class Experiment(ABC):
    """Measures something at every point of a grid, with the hyperparameters that are best for it.

    Attributes:
        name: The name on the command line.
        title: The title of the table and the figure.
        direction: ``"maximize"`` if more of the measured value is better.
        random: Whether all hyperparameters are drawn at random, alike at all points, instead of searched.
    """

    name: str
    title: str
    direction: Literal["maximize", "minimize"] = "maximize"
    random = False

    @abstractmethod
    def points(self, budget: Budget) -> list[Point]:
        """Return the grid, unconstrained and stable."""

    def first(self, point: Point) -> list[Params]:
        """Return the hyperparameters that are tried first."""
        return []

    def suggest(self, trial: optuna.Trial) -> Params:
        """Draw the hyperparameters of a trial: the largest learning rate and the factor of the first weights."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
            "gain": trial.suggest_float("gain", 0.5, 2.0, log=True),
        }

    @abstractmethod
    def measure(self, point: Point, params: Params, steps: int, seed: int) -> Outcome:
        """Train once and measure; the global random state is already seeded."""

    @abstractmethod
    def seconds(self, point: Point, steps: int) -> float:
        """Return about how long a trial takes on one core."""

    def row(self, point: Point, trials: Sequence[Trial]) -> Row:
        """Return the row of a point in the results; at least one of its trials succeeded."""
        best = self.best(trials)
        return asdict(point) | {
            **self.values(point, trials, best),
            "trials": len(trials),
            "failed": sum(trial.value is None for trial in trials),
            "steps": best.steps,
            "seconds": round(sum(trial.seconds for trial in trials), 1),
            "rate": best.details.get("rate"),
            "seed": best.seed,
            "hyperparameters": best.params,
        }

    @abstractmethod
    def values(self, point: Point, trials: Sequence[Trial], best: Trial) -> Row:
        """Return what the row of a point holds of its own measurement."""

    def finish(self, rows: list[Row]) -> list[Row]:
        """Return the rows with what needs all of them added."""
        return rows

    @abstractmethod
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables that are printed."""

    @abstractmethod
    def plot(self, rows: Sequence[Row], path: Path) -> Path:
        """Draw the figure and return its path."""

    def best(self, trials: Sequence[Trial]) -> Trial:
        """Return the trial with the best value."""
        successful = [trial for trial in trials if trial.value is not None]
        return (max if self.direction == "maximize" else min)(successful, key=lambda trial: trial.value or 0.0)


def beside(rows: Sequence[Row]) -> list[tuple[Row | None, Row | None]]:
    """Return pairs of the unconstrained and the stable row of the same task, cell, depth and size."""
    keys = list(dict.fromkeys(_key(row) for row in rows))
    by_key = {(_key(row), row["stable"]): row for row in rows}
    return [(by_key.get((key, False)), by_key.get((key, True))) for key in keys]


def paired_table(
    rows: Sequence[Row], *, title: str, caption: str, keys: Sequence[str], values: Mapping[str, Callable[[Row], str]]
) -> Table:
    """Return a table with a line for every network and the unconstrained value beside the stable one.

    Args:
        rows: The rows of the results.
        title: The title of the table.
        caption: The text below it.
        keys: The first columns; a section begins where the first of them changes.
        values: By the heading of a column, the text it shows of a row.
    """
    table = Table(title=title, caption=caption)
    for name in keys:
        table.add_column(name, justify="left" if name in ("task", "cell") else "right")
    for name in values:
        table.add_column(name, justify="right")
        table.add_column(f"{name},\nstable", justify="right")
    for _, section in groupby(beside(rows), key=lambda pair: (pair[0] or pair[1] or {})[keys[0]]):
        table.add_section()
        for pair in section:
            row = pair[0] or pair[1] or {}
            texts = ["" if each is None else text(each) for text in values.values() for each in pair]
            table.add_row(*(str(row[key]) for key in keys), *texts)
    return table


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["cell"], row["layers"], row["units"]
