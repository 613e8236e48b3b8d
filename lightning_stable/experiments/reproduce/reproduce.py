"""A task from end to end: train its models, compare them, write the results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from lightning_stable.experiments.pool import Job, default_processes, duration, run_all
from lightning_stable.experiments.reproduce.figures import plot_results
from lightning_stable.experiments.reproduce.options import ReproduceOptions
from lightning_stable.experiments.reproduce.tables import describe_published, results_table
from lightning_stable.experiments.reproduce.task import Run, Task
from lightning_stable.experiments.reproduce.train import finished, make_data, prepare, train
from lightning_stable.experiments.results import Row, show, show_failures, write_results


def reproduce(task: Task, out: Path, options: ReproduceOptions) -> int:
    """Train all models of a task and compare them.

    Writes ``results.json``, ``results.csv`` and ``results.png`` into ``out``, TensorBoard runs under ``tensorboard/``,
    and under ``runs/<name>/`` the configuration, best checkpoint and result of every run.

    Returns:
        The exit status: 0 if every run was finished, 1 otherwise.

    Raises:
        ValueError: If an option does not fit the task.
    """
    console = Console()
    everything = task.runs(options.budget, seed=options.seed, data_dir=options.data_dir, baselines=options.baselines)
    runs = _chosen(everything, options.only)
    data = make_data(runs[0].config)
    folders = {run.name: out / "runs" / run.name for run in runs}
    configs = {run.name: prepare(task, run, folders[run.name], data) for run in runs}
    rows: dict[str, Row] = {}
    if options.resume:
        earlier = {run.name: finished(folders[run.name], configs[run.name]) for run in runs}
        rows = {name: row for name, row in earlier.items() if row is not None}
    waiting = [run for run in runs if run.name not in rows]
    jobs = options.jobs or default_processes()
    console.print(
        f"{task.title}: {len(waiting)} models to train, {jobs} at a time, "
        f"about {duration(sum(run.seconds for run in waiting) / min(jobs, max(1, len(waiting))))}"
        + (f"; {len(rows)} are finished" if rows else ""),
        highlight=False,
    )

    def keep(name: str, row: Row) -> str:
        rows[name] = row
        write_results(out, [rows[each.name] for each in runs if each.name in rows], published=describe_published)
        return f"{name}: {row['metric']} {row['test']:.4g} in {row['seconds']:.0f} s, {row['epochs']} epochs"

    each_run = [Job(run.name, run.seconds, train, (task, run, folders[run.name], configs[run.name])) for run in waiting]
    failures = run_all(each_run, jobs, keep, console, "models")
    ordered = [rows[run.name] for run in runs if run.name in rows]
    if ordered:
        write_results(out, ordered, published=describe_published)
        floor = getattr(data, task.floor) if isinstance(task.floor, str) else task.floor
        # A narrow terminal may wrap it: numbers cut to fit say less.
        Console(width=max(110, console.width)).print(results_table(task, ordered, floor))
        if task.note:
            console.print(task.note.strip(), highlight=False)
        plot_results(task, ordered, floor, out / "results.png")
        board = f"tensorboard --logdir {out / 'tensorboard'}"
        show(console, Results=out / "results.json", Figure=out / "results.png", TensorBoard=board)
    show_failures(console, failures)
    return 1 if failures else 0


def _chosen(runs: list[Run], only: Iterable[str] | None) -> list[Run]:
    if only is None:
        return runs
    names = [run.name for run in runs]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f"`--only` must name runs of the task: {', '.join(names)}. Got {unknown[0]!r}.")
    return [run for run in runs if run.name in set(only)]
