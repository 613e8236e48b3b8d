"""The tables of the demo."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from rich.table import Table

from lightning_stable.experiments.demo.runs import LONGEST_WINDOW, TOLERANCE, Distances, Run
from lightning_stable.printing import counted
from lightning_stable.stability.report import format_rate, why_no_bound


def comparison_table(runs: list[Run], floors: tuple[float, float]) -> Table:
    """Return the table of perplexities, certified rates and the cost of the projection."""
    table = Table(title="The same network, unconstrained and stable")
    for column in (
        "",
        "validation\nperplexity",
        "test\nperplexity",
        "certified\nrate",
        "ms per\nstep",
        "of it\nprojection",
    ):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("word frequencies only", *(f"{floor:.1f}" for floor in floors), "-", "-", "-")
    for run in runs:
        assert run.report is not None
        step, projection = median(run.step_seconds), median(run.projection_seconds or [0.0])
        table.add_row(
            run.name,
            f"{run.best:.1f}",
            f"{run.test_perplexity:.1f}",
            " ".join(format_rate(layer.rate) for layer in run.report.layers),
            f"{step * 1e3:.1f}",
            f"{projection * 1e3:.1f} ({projection / step:.0%})" if projection else "-",
        )
    return table


def twin_table(runs: list[Run], window: int) -> Table:
    """Return the table that says whether the recurrence is needed: the twins, and the context the models use."""
    table = Table(title=f"Twins that see {counted(window, 'input')}")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    rows: dict[str, Callable[[Run], str]] = {
        "test perplexity of the model": lambda run: f"{run.test_perplexity:.1f}",
        "test perplexity of the twin": lambda run: f"{run.twin_perplexity:.1f}",
        "weight distance / distance travelled": lambda run: f"{run.metrics['shadow/val_weight_distance_relative']:.2g}",
        "prediction distance / predictions": lambda run: (
            f"{run.metrics['shadow/val_prediction_distance_relative']:.2g}"
        ),
        f"window for an error of {TOLERANCE:g}, measured": _measured_window,
        f"window for an error of {TOLERANCE:g}, certified for this text": _tube_window,
        f"window for an error of {TOLERANCE:g}, certified": _certified_window,
        "time of a step, with twin / without": lambda run: f"{run.metrics['shadow/step_time_ratio']:.1f}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(run) for run in runs))
    notes = [
        f"{run.name}: {why_no_bound(run.report, LONGEST_WINDOW, run.profile.output_norm)}"
        for run in runs
        if run.report is not None and run.profile is not None and not run.profile.has_useful_tube
    ]
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def _measured_window(run: Run) -> str:
    assert run.profile is not None
    window = run.profile.required_window(TOLERANCE)
    return f"more than {LONGEST_WINDOW}" if window is None else str(window)


def _tube_window(run: Run) -> str:
    assert run.profile is not None
    window = run.profile.tube_window(TOLERANCE)
    if window is not None:
        return str(window)
    return "none" if not run.profile.has_useful_tube else f"more than {LONGEST_WINDOW}"


def _certified_window(run: Run) -> str:
    assert run.report is not None
    window = run.report.required_window(TOLERANCE)
    return "none" if window is None else str(window)


def distance_factor(distances: Distances) -> str:
    """Say how much nearer the twin of the longest window is to the stable model than that of the shortest."""
    short, long = min(distances), max(distances)
    near, far = distances[long][-1][1], distances[short][-1][1]
    return (
        f"Stable model: the twin of window {long} ends {far / near:.0f} times nearer than that of window {short} "
        f"(relative weight distance {near:.2g} and {far:.2g})."
    )
