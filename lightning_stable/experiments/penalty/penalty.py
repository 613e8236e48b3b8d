"""The experiment from end to end: all trainings, the table and the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.experiments.penalty.train import LONGEST, Setting, settings, train
from lightning_stable.experiments.pool import one_thread
from lightning_stable.experiments.results import Row, read_results, write_results
from lightning_stable.figures import BOUND_COLOURS, MODEL_COLOURS, axes, log_axis, save
from lightning_stable.printing import print_whole
from lightning_stable.quiet import quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"none": MODEL_COLOURS["unconstrained"], "projection": BOUND_COLOURS["certified"]}
_METHODS = ("none", "penalty", "projection", "convolution")
_BY_WINDOW = ("#08306b", "#1f78b4", "#5aa5d6", "#a6cee3")


@quiet()
def run_penalty(options: PenaltyOptions) -> int:
    """Train what has no results yet, one after the other; write results after each, then table and figure.

    Returns:
        The exit status, 0.
    """
    one_thread()
    console, rows = Console(), read_results(options.out)
    done = {_key(row) for row in rows}
    todo = [setting for setting in settings(options) if _key(asdict(setting)) not in done]
    for count, setting in enumerate(todo, 1):
        row = train(setting, options)
        rows.append(row)
        write_results(options.out, rows)
        console.print(f"{count} of {len(todo)}: {_line(row)}", highlight=False)
    for table in tables(rows, options):
        print_whole(console, table)
    console.print(f"Figure: {plot(rows, options.out / 'penalty.png', options)}", highlight=False, soft_wrap=True)
    return 0


def tables(rows: Sequence[Row], options: PenaltyOptions) -> list[Table]:
    """Return a table for each task and cell: means over seeds, the loss as a share above that without constraint."""
    found = []
    for (task, cell), group in _grouped(rows, "task", "cell"):
        means = [(key, _mean(own)) for key, own in _grouped(group, "method", "window", "weight")]
        free = next((mean["loss"] for (method, *_), mean in means if method == "none"), math.nan)
        table = Table(title=f"{task}, {cell}: test loss, and the window for an error of {options.tolerance:.0%}")
        twins = any("distance" in row for row in group)
        for name in ("", "window", "weight", "loss", "above", "half", "9 in 10", "all", *(["twin"] if twins else [])):
            table.add_column(name, justify="left" if not name else "right")
        for (method, window, weight), mean in means:
            table.add_row(
                method,
                *("" if value is None else f"{value:g}" for value in (window, weight)),
                f"{mean['loss']:.4f}" + (f" +- {mean['spread']:.4f}" if mean["seeds"] > 1 else ""),
                "" if math.isnan(free) else f"{mean['loss'] / free - 1:+.1%}",
                *(_shown(mean[key]) for key in ("half", "most", "all")),
                *([f"{mean['distance']:.2g}" if "distance" in mean else ""] if twins else []),
            )
        found.append(table)
    return found


def plot(rows: Sequence[Row], path: Path, options: PenaltyOptions) -> Path:
    """Draw a panel for each task and cell, the loss against the window that nine in ten sequences need.

    The curves of the penalty begin where it weighs nothing. The convolutional network of the task stands beside them.
    """
    groups = _grouped(rows, "task", "cell")
    panels = [(key, group) for key, group in groups if group[0]["method"] != "convolution"]
    convolutions = {task: _mean(group) for (task, _), group in groups if group[0]["method"] == "convolution"}
    columns = min(2, len(panels))
    figure, drawn = axes((6 * columns, 4.2 * math.ceil(len(panels) / 2)), math.ceil(len(panels) / 2), columns)
    for panel, ((task, cell), group) in zip(drawn, panels, strict=False):
        curves = _grouped(group, "method", "window")
        free = [_mean(own) for (method, _), own in curves if method == "none"]
        by_window = iter(_BY_WINDOW)
        for (method, window), own in curves:
            means = [_mean(each) for _, each in _grouped(own, "weight")]
            colour = _COLOURS.get(method) or next(by_window, _BY_WINDOW[-1])
            label = f"penalty, window {window:g}" if method == "penalty" else method
            kind = "o" if method == "none" else "s" if method == "projection" else "o-"
            _draw(panel, [*(free if method == "penalty" else []), *means], kind, colour, label)
        if task in convolutions:
            _draw(panel, [convolutions[task]], "D", MODEL_COLOURS["convolutional"], "convolutional network")
        name = options.music if task == "music" else task
        panel.set(
            title=f"{name}, {cell.upper()}",
            xlabel=f"window that 9 in 10 sequences need for an error of {options.tolerance:.0%} (steps)",
            ylabel=f"test loss (nats per {'word' if task == 'text' else 'frame'})",
        )
        log_axis(panel, "x", subs=(1, 2, 4, 8))
    if drawn:
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return save(figure, path)


def _draw(panel: Axes, means: Sequence[Row], kind: str, colour: str, label: str) -> None:
    places = [mean["most"] or 2 * LONGEST for mean in means]
    above = 3 if kind == "o" else 2  # all curves of the penalty begin there
    panel.plot(places, [mean["loss"] for mean in means], kind, color=colour, label=label, markersize=5, zorder=above)


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[field.name] for field in fields(Setting))


def _grouped(rows: Sequence[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """The rows by the values of some columns; None comes before numbers, and no penalty before one."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    def order(row: Row) -> tuple[object, ...]:
        values = (_METHODS.index(row[n]) if n == "method" else row[n] for n in names)
        return tuple((-1, "") if value is None else (0, value) for value in values)

    return [(group, list(own)) for group, own in groupby(sorted(rows, key=order), key=key)]


def _mean(rows: Sequence[Row]) -> Row:
    losses = [row["loss"] for row in rows]
    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1))
    found = {key: [row[key] for row in rows] for key in ("half", "most", "all")}
    windows = {key: None if None in values else sum(values) / len(values) for key, values in found.items()}
    distances = [row["distance"] for row in rows if "distance" in row]
    twin = {"distance": sum(distances) / len(distances)} if distances else {}
    return {**rows[0], **windows, **twin, "loss": mean, "spread": spread, "seeds": len(rows)}


def _line(row: Row) -> str:
    kind = " ".join(f"{row[name]:g}" for name in ("window", "weight") if row[name] is not None)
    needed = " / ".join(_shown(row[key]) for key in ("half", "most", "all"))
    return f"{row['task']} {row['cell']} {row['method']} {kind}: loss {row['loss']:.4f}, windows {needed}"


def _shown(window: float | None) -> str:
    return f"> {LONGEST}" if window is None else f"{window:.3g}"
