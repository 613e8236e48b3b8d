"""Bits of random labels that a network learns by heart, against its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.table import Table
from typing_extensions import override

from lightning_stable.experiments.capacity import tasks
from lightning_stable.experiments.capacity.budgets import Budget
from lightning_stable.experiments.capacity.experiment import Experiment, paired_table
from lightning_stable.experiments.capacity.figures import plot_lines
from lightning_stable.experiments.capacity.fits import Line, fit_line
from lightning_stable.experiments.capacity.point import Outcome, Params, Point, Trial
from lightning_stable.experiments.capacity.train import train
from lightning_stable.experiments.results import Row


class Bits(Experiment):
    """Searches the patterns per parameter with the rest: too few hold little, too many are not learned."""

    name = "bits"
    title = "Bits of random labels against parameters"

    @override
    def points(self, budget: Budget) -> list[Point]:
        build = tasks.perceptron(1, 0).build
        points = [
            Point("perceptron", cell, layers, *tasks.units_for(build, cell, layers, size), stable)
            for cell in budget.cells
            for layers in budget.layers
            for size in budget.sizes
            for stable in (False, True)
        ]
        return list(dict.fromkeys(points))  # two sizes may be closest to the same network

    @override
    def first(self, point: Point) -> list[Params]:
        loads = (2.0, 1.0) if point.stable else (3.0, 2.3)
        return [{"learning_rate": 0.02, "gain": 1.0, "load": load} for load in loads]

    @override
    def suggest(self, trial: optuna.Trial) -> Params:
        return super().suggest(trial) | {"load": trial.suggest_float("load", 0.25, 8.0, log=True)}

    @override
    def measure(self, point: Point, params: Params, steps: int, seed: int) -> Outcome:
        patterns = max(1, round(params["load"] * point.parameters))
        _, metrics, rate = train(tasks.perceptron(patterns, seed), point, params, steps)
        return Outcome(metrics["val_bits"], {"patterns": patterns, "loss": metrics["val_loss"], "rate": rate})

    @override
    def seconds(self, point: Point, steps: int) -> float:
        patterns = (1.2 if point.stable else 3.0) * point.parameters
        return steps * ((7e-3 if point.stable else 3e-3) + 2e-7 * patterns * point.units * point.layers)

    @override
    def values(self, point: Point, trials: Sequence[Trial], best: Trial) -> Row:
        bits = best.value or 0.0
        return {
            "bits": round(bits, 2),
            "bits_per_parameter": round(bits / point.parameters, 4),
            "patterns": best.details["patterns"],
        }

    @override
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        table = paired_table(
            rows,
            title=self.title,
            caption="Published: about 5 bits per parameter (Collins et al. 2017).",
            keys=("cell", "layers", "units", "parameters"),
            values={
                "bits": lambda row: f"{row['bits']:.0f}",
                "per parameter": lambda row: f"{row['bits_per_parameter']:.2f}",
            },
        )
        lines = Table(title="Fitted bits per parameter (slope), over all sizes")
        for name in ("cell", "layers", "slope", "R²", "slope, stable", "R², stable", "stability costs"):
            lines.add_column(name, justify="left" if name == "cell" else "right")
        for (cell, layers), (free, stable) in slopes(rows).items():
            cost = f"{1 - stable.slope / free.slope:.0%}" if free and stable and free.slope > 0 else ""
            lines.add_row(cell, str(layers), *_numbers(free), *_numbers(stable), cost)
        return [table, lines]

    @override
    def plot(self, rows: Sequence[Row], path: Path) -> Path:
        return plot_lines(rows, slopes(rows), path, x="parameters", y="bits", title=self.title, unit="per parameter")


def slopes(rows: Sequence[Row], x: str = "parameters", y: str = "bits") -> dict[tuple[str, int], list[Line | None]]:
    """Return the fitted lines of every cell and depth: unconstrained and stable."""
    keys = dict.fromkeys((row["cell"], row["layers"]) for row in rows)

    def line(key: tuple[str, int], stable: bool) -> Line | None:
        sizes = [row for row in rows if (row["cell"], row["layers"]) == key and row["stable"] == stable]
        return fit_line([row[x] for row in sizes], [row[y] for row in sizes])

    return {key: [line(key, False), line(key, True)] for key in keys}


def _numbers(line: Line | None) -> tuple[str, str]:
    return ("", "") if line is None else (f"{line.slope:.2f}", f"{line.r_squared:.3f}")
