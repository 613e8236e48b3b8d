"""Real numbers that a network holds, against its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.table import Table
from typing_extensions import override

from lightning_stable.experiments.capacity import tasks
from lightning_stable.experiments.capacity.budgets import Budget
from lightning_stable.experiments.capacity.experiment import Experiment, paired_table
from lightning_stable.experiments.capacity.figures import plot_knees
from lightning_stable.experiments.capacity.point import Outcome, Params, Point, Trial
from lightning_stable.experiments.capacity.train import train
from lightning_stable.experiments.results import Row


class Reals(Experiment):
    """Searches the values per unit with the rest; a network holds ``values (1 - normalised error)`` of them."""

    name = "reals"
    title = "Recall of real numbers against units"

    @override
    def points(self, budget: Budget) -> list[Point]:
        build = tasks.memory(1, 0).build

        def size(cell: str, layers: int, units: int) -> int:
            return tasks.parameter_count(build(cell, layers, units))

        return [
            # Of the recurrent layers alone with one output: the head grows with the values, which are searched.
            Point("memory", cell, layers, units, size(cell, layers, units), stable)
            for cell in budget.cells
            for layers in budget.layers
            for units in budget.sizes
            for stable in (False, True)
        ]

    @override
    def first(self, point: Point) -> list[Params]:
        return [{"learning_rate": 0.02, "gain": 1.0, "load": load} for load in (1.0, 0.5, 1.5, 2.0)]

    @override
    def suggest(self, trial: optuna.Trial) -> Params:
        return super().suggest(trial) | {"load": trial.suggest_float("load", 0.25, 2.5)}

    @override
    def measure(self, point: Point, params: Params, steps: int, seed: int) -> Outcome:
        values = max(1, round(params["load"] * point.units))
        task = tasks.memory(values, seed)
        _, metrics, rate = train(task, point, params, steps)
        error = min(1.0, metrics["val_loss"] / task.floor)
        return Outcome(values * (1 - error), {"values": values, "error": error, "rate": rate})

    @override
    def seconds(self, point: Point, steps: int) -> float:
        return steps * ((6e-3 if point.stable else 4e-3) + 2e-4 * point.units * point.layers)

    @override
    def values(self, point: Point, trials: Sequence[Trial], best: Trial) -> Row:
        reals = best.value or 0.0
        errors: dict[int, float] = {}
        for trial in trials:
            if trial.value is not None:
                values, error = trial.details["values"], trial.details["error"]
                errors[values] = min(error, errors.get(values, 1.0))
        return {
            "reals": round(reals, 3),
            "reals_per_unit": round(reals / point.units, 4),
            "errors": [{"values": values, "error": round(errors[values], 4)} for values in sorted(errors)],
        }

    @override
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        table = paired_table(
            rows,
            title=self.title,
            caption="Published: about one per unit (Collins et al. 2017); a linear read-out cannot say more than one.",
            keys=("cell", "layers", "units"),
            values={
                "reals": lambda row: f"{row['reals']:.2f}",
                "per unit": lambda row: f"{row['reals_per_unit']:.2f}",
            },
        )
        return [table]

    @override
    def plot(self, rows: Sequence[Row], path: Path) -> Path:
        return plot_knees(rows, path, title=self.title)
