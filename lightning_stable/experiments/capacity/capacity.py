"""An experiment from end to end: search at every point of its grid, show and write what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_stable.experiments.capacity.budgets import BUDGETS, Budget
from lightning_stable.experiments.capacity.options import CapacityOptions
from lightning_stable.printing import print_whole

try:
    import optuna  # noqa: F401
    import scipy  # noqa: F401
except ImportError as error:
    raise ModuleNotFoundError(
        f"The experiments need optuna and scipy: pip install 'lightning-stable[capacity]'. Got no {error.name}.",
        name=error.name,
    ) from error

from rich.console import Console

from lightning_stable import checks
from lightning_stable.experiments.capacity.bits import Bits
from lightning_stable.experiments.capacity.experiment import Experiment
from lightning_stable.experiments.capacity.point import Point, Trial
from lightning_stable.experiments.capacity.reals import Reals
from lightning_stable.experiments.capacity.search import open_storage, search_point, stored
from lightning_stable.experiments.capacity.trainability import Trainability
from lightning_stable.experiments.pool import Job, default_processes, explained_stop, run_all
from lightning_stable.experiments.results import Row, show, show_failures, write_csv, write_results
from lightning_stable.experiments.timetable import duration
from lightning_stable.models import CELLS


def run(name: str, out: Path, options: CapacityOptions) -> int:
    """Run one of the experiments ``bits``, ``reals`` and ``trainability``; see :func:`measure`.

    Raises:
        ValueError: If an option does not fit.
    """
    name = checks.choice("name", name, list(BUDGETS))
    if options.data_dir is not None and name != "trainability":
        raise ValueError(f"`--data-dir` has a meaning for trainability only. Got {str(options.data_dir)!r}.")
    budget = BUDGETS[name][options.budget]
    for cell in options.cells or ():
        checks.choice("--cells", cell, list(CELLS))
    wanted: dict[str, Any] = {"cells": options.cells, "trials": options.trials, "steps": options.steps}
    budget = replace(budget, **{key: value for key, value in wanted.items() if value is not None})
    experiment = Trainability(options.data_dir) if name == "trainability" else {"bits": Bits, "reals": Reals}[name]()
    return measure(experiment, budget, out, options)


def measure(experiment: Experiment, budget: Budget, out: Path, options: CapacityOptions) -> int:
    """Search at every point of a grid, side by side, and write the results.

    Writes ``results.json``, ``results.csv``, ``trials.csv`` with every trial, and ``results.png`` into ``out``, and
    keeps the searches in ``search.db`` there.

    Returns:
        The exit status: 0 if all points have a result, 1 otherwise.

    Raises:
        ValueError: If there are searches in ``out`` already and ``options.resume`` is False.
    """
    console = Console()
    file = out / "search.db"
    if file.exists() and not options.resume:
        raise ValueError(f"`--out` must have no searches in it, unless --resume goes on with them. Got {str(file)!r}.")
    url = options.storage or f"sqlite:///{file.resolve()}"
    if options.storage is None:
        out.mkdir(parents=True, exist_ok=True)
    try:
        storage = open_storage(url)  # the tables are made once, before processes share them
    except Exception as error:  # of any of the packages between here and a database
        place = "--out" if options.storage is None else "--storage"
        raise ValueError(f"`{place}` must be where a database can be opened. Got {url!r}: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    points = experiment.points(budget)
    finished: dict[Point, list[Trial]] = {}
    for point in points:
        finished[point] = stored(experiment, point, storage, budget.steps, options.seed)
    left = {point: max(0, budget.trials - len(finished[point])) for point in points}
    waiting = [point for point in points if left[point]]
    seconds = {point: left[point] * experiment.seconds(point, budget.steps) for point in waiting}
    jobs = options.jobs or default_processes()
    done = sum(len(trials) for trials in finished.values())
    console.print(
        f"{experiment.title}: {len(points)} networks, {sum(left.values())} trials to go, {jobs} at a time, "
        f"about {duration(15 + sum(seconds.values()) / min(jobs, max(1, len(waiting))))} on {jobs} free cores"
        + (f"; {done} are finished" if done else ""),
        highlight=False,
    )

    def keep(name: str, trials: list[Trial]) -> str:
        point = next(point for point in points if point.name == name)
        finished[point] = trials
        _write(experiment, finished, out)
        good = [trial for trial in trials if trial.value is not None]
        took = duration(sum(trial.seconds for trial in trials))
        best = f"best {experiment.best(good).value:.4g} of " if good else ""
        return f"{name}: {best}{len(trials)} trials, {took}"

    work = (budget.trials, budget.steps, options.seed)
    tasks = [Job(point.name, seconds[point], search_point, (experiment, point, url, work)) for point in waiting]
    longest_first = sorted(tasks, key=lambda job: -job.seconds)
    stopped = f"Stopped. Finished trials are kept in {out}; the same command with --resume goes on."
    with explained_stop(console, stopped):
        failures = run_all(longest_first, jobs, keep, console, "networks")
    rows = _write(experiment, finished, out)
    if rows:
        for table in experiment.tables(rows):
            print_whole(console, table)
        experiment.plot(rows, out / "results.png")
        show(console, Results=out / "results.json", Trials=out / "trials.csv", Figure=out / "results.png")
    show_failures(console, failures)
    empty = [point for point in points if not any(trial.value is not None for trial in finished[point])]
    for point in empty:
        errors = [trial.details["error"] for trial in finished[point]]
        console.print(f"{point.name} has no result: {errors[-1] if errors else 'no trial'}", style="red")
    return 1 if failures or empty else 0


def _write(experiment: Experiment, trials: dict[Point, list[Trial]], out: Path) -> list[Row]:
    good = {point: done for point, done in trials.items() if any(trial.value is not None for trial in done)}
    rows = experiment.finish([experiment.row(point, done) for point, done in good.items()])
    write_results(out, rows)
    write_csv(out / "trials.csv", _trials(trials))
    return rows


def _trials(trials: dict[Point, list[Trial]]) -> Sequence[Row]:
    return [
        {
            "point": point.name,
            "trial": trial.number,
            "seed": trial.seed,
            "steps": trial.steps,
            "seconds": trial.seconds,
            "value": trial.value,
            "hyperparameters": json.dumps(trial.params),
            "details": json.dumps(trial.details),
        }
        for point, done in trials.items()
        for trial in done
    ]
