"""``python -m benchmarks [NAME ...] [--sizes N ...] [--device DEVICE] [--processes N] [--json FILE] [--plot FILE]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import certificates, overhead, profile, projection, scaling, shadow, truncation
from benchmarks.timing import Comparison

# Those of the projection run on any device and for any sizes.
BENCHMARKS: dict[str, Callable[[tuple[int, ...], str], Iterator[Comparison]]] = {
    "projection": projection.projection,
    "certificates": lambda sizes, device: certificates.certificates(sizes),
    "overhead": lambda sizes, device: overhead.overhead(device=device),
    "truncation": lambda sizes, device: truncation.truncation_against_naive(),
    "profile": lambda sizes, device: profile.profile_against_runs(),
    "shadow": lambda sizes, device: shadow.shadow(),
    "scaling": lambda sizes, device: scaling.scaling(),
}
ON_ANY_DEVICE = ("projection", "overhead")
MEMORY, CALLBACKS = "memory", "callbacks"


def main() -> None:
    """Run the benchmarks named, print a table, write JSON and a figure if asked."""
    names = [*BENCHMARKS, CALLBACKS, MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=projection.SIZES,
        help="units of the cells of projections and certificates",
    )
    parser.add_argument("--device", default="cpu", help=f"for {' and '.join(ON_ANY_DEVICE)}; the others are for CPUs")
    parser.add_argument("--processes", type=int, default=1, help=f"for {CALLBACKS}: processes of a run, by DDP")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}. Got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    console = Console()
    chosen = options.names or [name for name in names if options.device == "cpu" or name in ON_ANY_DEVICE]
    rows: list[Comparison] = []
    benchmarks = {**BENCHMARKS, CALLBACKS: lambda *_: scaling.callbacks(options.processes)}
    for name in (name for name in chosen if name != MEMORY):
        with console.status(f"{name} ..."):
            rows.extend(benchmarks[name](tuple(options.sizes), options.device))
    if rows:
        console.print(_table(rows))
    if MEMORY in chosen:
        sides = dict(truncation.peak_memory())
        console.print(
            f"Peak memory of a pass (LSTM, T=256, B=20, H=128, k=25): naive windows {sides['naive']:.0f} MiB, "
            f"truncated {sides['windowed']:.0f} MiB, {sides['naive'] / sides['windowed']:.1f} times less"
        )
    if options.json:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    if options.plot:
        plot(rows, options.plot)


def _table(rows: Sequence[Comparison]) -> Table:
    table = Table(title=f"torch {torch.__version__}, one thread; ratio = baseline / ours")
    for column in ("benchmark", "size", "baseline", "baseline ms", "ours ms", "ratio", "spread", "error"):
        table.add_column(column, justify="left" if column in ("benchmark", "baseline") else "right")
    for row in rows:
        times = (f"{row.baseline_seconds * 1e3:.2f}", f"{row.ours_seconds * 1e3:.2f}")
        ratio = (f"{row.ratio:.3f}", f"{row.spread:.3f}", f"{row.error:.1e}")
        table.add_row(row.name, str(row.size), row.baseline, *times, *ratio)
    return table


def plot(rows: Sequence[Comparison], path: Path) -> None:
    """The ratio over the size, one line per benchmark and baseline."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).add_subplot()
    lines: dict[str, list[Comparison]] = {}
    for row in rows:
        lines.setdefault(f"{row.name} / {row.baseline}", []).append(row)
    for label, points in lines.items():
        axes.errorbar(
            [p.size for p in points], [p.ratio for p in points], [p.spread / 2 for p in points], marker="o", label=label
        )
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set(xscale="log", yscale="log", xlabel="size", ylabel="times faster than the baseline")
    axes.legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
