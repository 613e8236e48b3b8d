"""The results of a task as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_stable.experiments.files import write_csv, write_text


def write_results(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write ``results.json`` and ``results.csv``."""
    write_text(folder / "results.json", json.dumps(rows, indent=1))
    write_csv(folder / "results.csv", [row | {"published": describe_published(row)} for row in rows])


def describe_published(row: dict[str, Any]) -> str:
    """``8.45 (published, Bai et al. 2018)``."""
    return "; ".join(f"{found['value']:g} ({found['status']}, {found['source']})" for found in row["published"])
