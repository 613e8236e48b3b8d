"""``python -m benchmarks [NAME ...] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import projection

BENCHMARKS = {"clip": projection.clip_against_svd, "step": projection.share_of_a_step}


def main() -> None:
    """Run the benchmarks named, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"NAME must be one of {', '.join(BENCHMARKS)}. Got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    console, rows = Console(), []
    table = Table(title=f"torch {torch.__version__}, one thread; ratio = baseline / ours")
    for column in ("benchmark", "size", "baseline", "baseline ms", "ours ms", "ratio", "error"):
        table.add_column(column, justify="left" if column in ("benchmark", "baseline") else "right")
    for name in options.names or BENCHMARKS:
        with console.status(f"{name} ..."):
            for row in BENCHMARKS[name]():
                rows.append(row)
                times = (f"{row.baseline_seconds * 1e3:.2f}", f"{row.ours_seconds * 1e3:.2f}", f"{row.ratio:.3f}")
                table.add_row(row.name, str(row.size), row.baseline, *times, f"{row.error:.1e}")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
