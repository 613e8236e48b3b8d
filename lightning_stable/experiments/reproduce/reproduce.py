"""A task from end to end: train its models, compare them, write the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from lightning_stable.experiments.pool import Job, default_processes, explained_stop, run_all
from lightning_stable.experiments.reproduce.figures import plot_results
from lightning_stable.experiments.reproduce.options import ReproduceOptions
from lightning_stable.experiments.reproduce.summary import summarized
from lightning_stable.experiments.reproduce.tables import describe_gates, describe_published, results_table
from lightning_stable.experiments.reproduce.task import Run, Task, by_importance
from lightning_stable.experiments.reproduce.train import finished, make_data, prepare, train
from lightning_stable.experiments.results import Row, show, show_failures, write_csv
from lightning_stable.experiments.timetable import duration
from lightning_stable.files import write_text
from lightning_stable.printing import counted, print_whole

# Seconds until the processes are there, and of a run before its first epoch and after its last.
_START, _AROUND = 15.0, 2.0


def reproduce(task: Task, out: Path, options: ReproduceOptions) -> int:
    """Train all models of a task and compare them.

    Writes ``results.json``, with a row per run, ``results.csv``, with a row per model, and ``results.png`` into
    ``out``, TensorBoard runs under ``tensorboard/``, and under ``runs/<name>/`` the configuration, best checkpoint and
    result of every run.

    Returns:
        The exit status: 0 if every run was finished, 1 otherwise.

    Raises:
        ValueError: If an option does not fit the task.
    """
    console = Console()
    kept = f"Stopped. Finished models and whole epochs of the others are kept in {out}"
    with explained_stop(console, f"{kept}; the same command with --resume goes on."):
        return _reproduce(task, out, options, console)


def _reproduce(task: Task, out: Path, options: ReproduceOptions, console: Console) -> int:
    runs = _chosen(task.runs(options), options.only)
    data = make_data(runs[0].config)
    folders = {run.name: out / "runs" / run.name for run in runs}
    configs = {run.name: prepare(task, run, folders[run.name], data, resume=options.resume) for run in runs}
    rows = _kept(task, out) if options.resume else {}
    waiting = by_importance([run for run in runs if run.name not in rows], task.baselines)
    processes = options.jobs or default_processes()
    seconds = _START + sum(run.seconds + _AROUND for run in waiting) / min(processes, max(1, len(waiting)))
    expected = f", {processes} at a time, about {duration(seconds)}" if waiting else ""
    done = f"; {len(rows)} are finished" if rows else ""
    console.print(
        f"{task.title}: {counted(len(waiting), 'model')} to train{expected}{done}",
        highlight=False,
    )

    def keep(name: str, row: Row) -> str:
        rows[name] = row
        _write(task, rows, out)
        took = duration(row["seconds"])
        return f"{name}: {row['metric']} {row['test']:.4g} in {took}, {counted(row['epochs'], 'epoch')}"

    work = {run.name: (task, run, folders[run.name], configs[run.name]) for run in waiting}
    jobs = [Job(run.name, run.seconds + _AROUND, train, work[run.name], run.may_end_early) for run in waiting]
    failures = run_all(jobs, processes, keep, console, "models")
    if rows:
        ordered = _write(task, rows, out)
        floor = getattr(data, task.floor) if isinstance(task.floor, str) else task.floor
        models = summarized(ordered)
        print_whole(console, results_table(task, models, floor))
        if task.note:
            console.print(" ".join(task.note.split()), highlight=False)
        plot_results(task, models, floor, out / "results.png")
        board = f"tensorboard --logdir {out / 'tensorboard'}"
        show(console, Results=out / "results.json", Figure=out / "results.png", TensorBoard=board)
    show_failures(console, failures)
    return 1 if failures else 0


def _chosen(runs: list[Run], only: Iterable[str] | None) -> list[Run]:
    if only is None:
        return runs
    names = list(dict.fromkeys(run.model for run in runs))
    known = {*names, *(run.name for run in runs)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"`--only` must name runs of the task: {', '.join(names)}. Got {unknown[0]!r}.")
    return [run for run in runs if {run.model, run.name} & set(only)]


def _kept(task: Task, out: Path) -> dict[str, Row]:
    """Return the rows of all finished runs in a folder, whoever asked for them, by name."""
    found = {folder.name: finished(folder) for folder in sorted((out / "runs").iterdir())}
    return {name: row for name, row in found.items() if row is not None and row["task"] == task.name}


def _write(task: Task, rows: Mapping[str, Row], out: Path) -> list[Row]:
    """Write the files of results, and return the rows in the order of the task."""
    cores = [*task.cells, *task.baselines]
    ordered = sorted(
        rows.values(),
        key=lambda row: (cores.index(row["core"]), row["stable"], row["window"] or 0, row["seed"]),
    )
    write_text(out / "results.json", json.dumps(ordered, indent=1))
    write_csv(out / "results.csv", [row | _as_text(row) for row in summarized(ordered)])
    return ordered


def _as_text(row: Row) -> Row:
    """What stands in the CSV for the nested values of a row."""
    seeds = " ".join(map(str, row["seeds"]))
    return {"gates": describe_gates(row), "published": describe_published(row), "seeds": seeds}
