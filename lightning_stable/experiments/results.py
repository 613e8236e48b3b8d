"""Files of results, and lines about them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_stable.files import write_text

Row = dict[str, Any]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV, in one piece, with the keys of the first row as columns; return the path."""
    lines = io.StringIO()
    if rows:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return write_text(path, lines.getvalue())


def write_results(folder: Path, rows: Sequence[Row], **flat: Callable[[Row], object]) -> None:
    """Write rows as ``results.json`` and ``results.csv``.

    Args:
        folder: The folder of both files.
        rows: The rows, ready for JSON.
        **flat: For columns of the CSV that replace a nested value: what they hold of a row.
    """
    write_text(folder / "results.json", json.dumps(rows, indent=1))
    write_csv(folder / "results.csv", [row | {key: value(row) for key, value in flat.items()} for row in rows])


def read_results(folder: Path) -> list[Row]:
    """Return the rows that :func:`write_results` left in a folder; none if it did not."""
    path = folder / "results.json"
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def show(console: Console, **values: object) -> None:
    """Print a line for every value, its name in front; paths are not broken."""
    width = max(map(len, values)) + 1
    for name, value in values.items():
        console.print(f"{f'{name}:':{width}} {value}", highlight=False, soft_wrap=True)


def show_failures(console: Console, failures: Mapping[str, Exception]) -> None:
    """Print a line for every job that failed."""
    for name, error in failures.items():
        console.print(f"{name} failed: {error}", style="red", highlight=False)
