"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> Path:
    """Write a file in one piece: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_results(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write ``results.json`` and ``results.csv``."""
    write_text(folder / "results.json", json.dumps(rows, indent=1))
    lines = io.StringIO()
    if rows:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"published": describe_published(row)})
    write_text(folder / "results.csv", lines.getvalue())


def describe_published(row: dict[str, Any]) -> str:
    """``8.45 (published, Bai et al. 2018)``."""
    return "; ".join(f"{found['value']:g} ({found['status']}, {found['source']})" for found in row["published"])
