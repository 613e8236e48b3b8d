"""``python -m benchmarks [NAME ...] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import projection, truncation
from benchmarks.timing import Comparison

BENCHMARKS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "clip": projection.clip_against_svd,
    "step": projection.share_of_a_step,
    "truncation": truncation.truncation_against_naive,
    "profile": truncation.profile_against_runs,
}
MEMORY = "memory"


def main() -> None:
    """Run the benchmarks named, print a table, write JSON if asked."""
    names = [*BENCHMARKS, MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}. Got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    console, rows = Console(), []
    table = Table(title=f"torch {torch.__version__}, one thread; ratio = baseline / ours")
    for column in ("benchmark", "size", "baseline", "baseline ms", "ours ms", "ratio", "error"):
        table.add_column(column, justify="left" if column in ("benchmark", "baseline") else "right")
    chosen = options.names or names
    for name in (name for name in chosen if name != MEMORY):
        with console.status(f"{name} ..."):
            for row in BENCHMARKS[name]():
                rows.append(row)
                times = (f"{row.baseline_seconds * 1e3:.2f}", f"{row.ours_seconds * 1e3:.2f}", f"{row.ratio:.3f}")
                table.add_row(row.name, str(row.size), row.baseline, *times, f"{row.error:.1e}")
    if rows:
        console.print(table)
    if MEMORY in chosen:
        sides = dict(truncation.peak_memory())
        console.print(
            f"Peak memory of a pass (LSTM, T=256, B=20, H=128, k=25): naive windows {sides['naive']:.0f} MiB, "
            f"truncated {sides['windowed']:.0f} MiB, {sides['naive'] / sides['windowed']:.1f} times less"
        )
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
