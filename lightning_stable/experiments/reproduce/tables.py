"""The table of a task: the models beside each other and beside published figures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lightning_stable.experiments.reproduce.task import Task
from lightning_stable.experiments.results import Row
from lightning_stable.stability.report import format_rate

# What a rate is worth by what is known of the inputs: of an unstable model's rate too, so it is said once and for all.
_INPUTS = {
    "guaranteed": "a bound for all inputs{}",
    "derived": "a bound for all inputs the traced model lets through",
    "data": "a bound for inputs in the range of those seen, and no promise for others",
}


def results_table(task: Task, rows: Sequence[Row], floor: float | None) -> Table:
    """Return a table with one line per model, truncated ones below the recurrent model they come from."""
    sources = list(dict.fromkeys((each.source, each.status) for each in task.published))
    marks = dict(zip(sources, "abcdefghij", strict=False))
    literature = [f"{mark} {source}, {status}" for (source, status), mark in marks.items()]
    table = Table(
        title=f"{task.title}: {task.metric.title}, {task.metric.better} is better",
        caption="\n".join([*_notes(rows), *literature]),
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for name in ("sees", "validation", "test", "certified\nrate", "recurrent\nnorm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("largest rows", no_wrap=True)
    table.add_column("literature", no_wrap=True)
    if floor is not None:
        table.add_row("nothing learned", "", "", _number(floor * task.metric.scale))
    best = (min if task.metric.better == "lower" else max)(row["test"] for row in rows)
    previous = None
    for row in rows:
        if row["core"] != previous:
            table.add_section()
            previous = row["core"]
        test = _figure(row, "test")
        table.add_row(
            f"{row['core']} {kind(row)}",
            "all" if row["receptive_field"] is None else str(row["receptive_field"]),
            _figure(row, "validation"),
            f"[bold]{test}[/bold]" if row["test"] == best else test,
            _rate(row),
            "" if row["recurrent_norm"] is None else f"{row['recurrent_norm']:.2f}",
            describe_gates(row),
            "  ".join(f"{each['value']:g} {marks[each['source'], each['status']]}" for each in row["published"]),
        )
    return table


def describe_gates(row: Row) -> str:
    """Return the largest rows of the gates in one line: ``i 0.05 f 0.01 g 0.02 o 6.86``."""
    return " ".join(f"{gate} {norm:.2f}" for gate, norm in row["gates"].items())


def describe_published(row: Row) -> str:
    """Return the published figures of a row in one line: ``8.45 (published, Bai et al. 2018)``."""
    return "; ".join(f"{each['value']:g} ({each['status']}, {each['source']})" for each in row["published"])


def kind(row: Row) -> str:
    """Return the kind of a model, ``stable, truncated``; nothing for a convolutional network."""
    if row["recurrent_norm"] is None:
        return ""
    return ("stable" if row["stable"] else "unconstrained") + (", truncated" if row["window"] else "")


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, as far as these rows need it."""
    recurrent = [row for row in rows if row["recurrent_norm"] is not None]
    found: dict[str, str] = {}
    for row in recurrent:  # cells without gates need no set
        found[row["input_guarantee"]] = row["inputs"] or found.get(row["input_guarantee"], "")
    notes = []
    for guarantee, text in _INPUTS.items():
        if guarantee in found:
            mark = "" if guarantee == "guaranteed" else f" ({guarantee})"
            declared = f" of the declared set, {found[guarantee]}" if found[guarantee] else ""
            notes.append(f"certified rate{mark}: {text.format(declared)}; stable below 1")
    if recurrent:
        notes.append("largest rows: the largest sum of magnitudes in a row of the recurrent weights, by gate")
    counts = {len(row["seeds"]) for row in rows}
    if max(counts) > 1:
        notes.append(f"±: standard deviation over {' or '.join(map(str, sorted(counts)))} seeds")
    return notes


def _rate(row: Row) -> str:
    if row["recurrent_norm"] is None:
        return ""
    rate = format_rate(float("inf") if row["rate"] is None else row["rate"])
    return rate if row["input_guarantee"] == "guaranteed" else f"{rate} ({row['input_guarantee']})"


def _figure(row: Row, name: str) -> str:
    spread = row[f"{name}_spread"]
    return _number(row[name]) + ("" if spread is None else f" ± {spread:.2g}")


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e-2 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
