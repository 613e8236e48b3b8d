"""An experiment whose trials take no time, or as long as one likes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_stable.experiments.capacity import search
from lightning_stable.experiments.capacity.budgets import Budget
from lightning_stable.experiments.capacity.experiment import Experiment
from lightning_stable.experiments.capacity.point import Outcome, Params, Point, Trial
from lightning_stable.experiments.results import Row

POINT = Point("nothing", "rnn", 1, 3, 10, False)


def ignore(*_: Any) -> None:
    """A report that nobody reads."""


class Tiny(Experiment):
    """Says the learning rate, after ``pause`` seconds from the third trial on; fails where ``broken`` says so."""

    name = "tiny"
    title = "A tiny experiment"

    def __init__(self, pause: float = 0.0, broken: Sequence[int] = ()) -> None:
        self.pause, self.broken, self.calls = pause, broken, 0

    def points(self, budget: Budget) -> list[Point]:
        return [POINT]

    def first(self, point: Point) -> list[Params]:
        return [{"learning_rate": rate, "gain": 1.0} for rate in (0.01, 0.02, 0.03)]

    def measure(self, point: Point, params: Params, steps: int, seed: int) -> Outcome:
        self.calls += 1
        if self.calls in self.broken:
            raise ValueError("`x` must be whole. Got a\nbroken one.")
        if self.calls > 2 and self.pause:
            print("running", flush=True)
            time.sleep(self.pause)
        return Outcome(params["learning_rate"], {"rate": None})

    def seconds(self, point: Point, steps: int) -> float:
        return 0.1

    def values(self, point: Point, trials: Sequence[Trial], best: Trial) -> Row:
        return {"value": best.value}

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        return [Table(title=f"{len(rows)} rows")]

    def plot(self, rows: Sequence[Row], path: Path) -> Path:
        return path


if __name__ == "__main__":
    search.HEARTBEAT, search.GRACE = 1, 2
    search.search_point(Tiny(pause=600), POINT, sys.argv[1], (5, 1, 0), ignore)
