"""How easily networks learn: the share of random hyperparameters that work, and the best loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import optuna
from rich.table import Table
from typing_extensions import override

from lightning_stable.experiments.capacity import tasks
from lightning_stable.experiments.capacity.budgets import Budget
from lightning_stable.experiments.capacity.experiment import Experiment, paired_table
from lightning_stable.experiments.capacity.figures import plot_shares
from lightning_stable.experiments.capacity.point import Outcome, Params, Point, Trial
from lightning_stable.experiments.capacity.train import train
from lightning_stable.experiments.results import Row


class Trainability(Experiment):
    """Measures the loss relative to learning nothing: 1 is nothing, 0 is everything.

    A trial is good if it goes at least half the way from nothing to the best trial of any network on the task.

    Args:
        data_dir: The folder with text8; None takes Python's own documentation as the text.
    """

    name = "trainability"
    title = "Share of random hyperparameters that work"
    direction: Literal["maximize", "minimize"] = "minimize"
    random = True

    def __init__(self, data_dir: Path | None = None) -> None:
        self.data_dir = data_dir

    def task(self, name: str, parameters: int, seed: int) -> tasks.Task:
        """Return a task by its name, with as many patterns or values as fit the size of the network.

        Raises:
            ValueError: If there is no such task.
        """
        if name == "perceptron":
            return tasks.perceptron(parameters, seed)
        if name == "function":
            return tasks.function(max(1, parameters // 4), seed)
        if name == "memory":
            return tasks.memory(16, seed)
        if name == "parentheses":
            return tasks.parentheses(seed)
        if name == "arithmetic":
            return tasks.arithmetic(seed)
        if name == "text":
            return tasks.text(self.data_dir)
        raise ValueError(f"`task` must be one of the tasks of a budget. Got {name!r}.")

    @override
    def points(self, budget: Budget) -> list[Point]:
        points = []
        for name in budget.tasks:
            build = self.task(name, 1, 0).build
            for cell in budget.cells:
                for layers in budget.layers:
                    for size in budget.sizes:
                        units, parameters = tasks.units_for(build, cell, layers, size)
                        points += [Point(name, cell, layers, units, parameters, stable) for stable in (False, True)]
        return list(dict.fromkeys(points))

    @override
    def suggest(self, trial: optuna.Trial) -> Params:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
            "gain": trial.suggest_float("gain", 0.25, 4.0, log=True),
        }

    @override
    def measure(self, point: Point, params: Params, steps: int, seed: int) -> Outcome:
        task = self.task(point.task, point.parameters, seed)
        _, metrics, rate = train(task, point, params, steps)
        loss = metrics.get("val_loss", float("inf"))
        # How much worse than nothing it was does not matter, and a search cannot keep what is not finite.
        return Outcome(min(1.0, loss / task.floor) if loss == loss else 1.0, {"floor": task.floor, "rate": rate})

    @override
    def seconds(self, point: Point, steps: int) -> float:
        length = {"parentheses": 40, "text": 35}.get(point.task, 10)
        return 1.0 + steps * ((6e-3 if point.stable else 4e-3) + 2e-4 * length * point.layers)

    @override
    def values(self, point: Point, trials: Sequence[Trial], best: Trial) -> Row:
        return {
            "best_loss": round(best.value or 0.0, 4),
            "losses": [1.0 if trial.value is None else round(trial.value, 4) for trial in trials],
        }

    @override
    def finish(self, rows: list[Row]) -> list[Row]:
        finished = []
        for row in rows:
            best = min(each["best_loss"] for each in rows if each["task"] == row["task"])
            good = sum(loss < 1 and loss <= (1 + best) / 2 for loss in row["losses"])
            finished.append(row | {"good_fraction": round(good / len(row["losses"]), 4)})
        return finished

    @override
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        table = paired_table(
            rows,
            title="Trainability: share of good trials, and the best loss relative to learning nothing",
            caption="Good: at least half the way from learning nothing (1) to the best trial of all on the task.",
            keys=("task", "cell", "layers", "units"),
            values={
                "good": lambda row: f"{row['good_fraction']:.0%}",
                "best loss": lambda row: f"{row['best_loss']:.3f}",
            },
        )
        return [table]

    @override
    def plot(self, rows: Sequence[Row], path: Path) -> Path:
        return plot_shares(rows, path, title=self.title)
