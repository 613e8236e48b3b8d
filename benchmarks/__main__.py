"""``python -m benchmarks [NAME ...] [--sizes N ...] [--device DEVICE] [--processes N] [--json FILE] [--plot FILE]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    certificates,
    limits,
    overhead,
    peers,
    premises,
    profile,
    projection,
    scaling,
    scan,
    shadow,
    truncation,
    tube,
    validations,
)
from benchmarks.timing import Comparison
from lightning_stable.files import write_text
from lightning_stable.options import output_file, positive

BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Comparison]]] = {
    "projection": lambda options: projection.projection(tuple(options.sizes), options.device),
    "certificates": lambda options: certificates.certificates(tuple(options.sizes)),
    "peers": lambda options: peers.peers(device=options.device),
    "validations": lambda options: validations.validations(),
    "limits": lambda options: limits.limits(device=options.device),
    "overhead": lambda options: overhead.overhead(device=options.device),
    "premises": lambda options: premises.premises(device=options.device),
    "truncation": lambda options: truncation.truncation_against_naive(
        truncation.SHAPES if options.device == "cpu" else truncation.GPU_SHAPES, device=options.device
    ),
    "scan": lambda options: scan.scan(device=options.device),
    "profile": lambda options: profile.profile_against_runs(device=options.device),
    "tube": lambda options: tube.tube(device=options.device),
    "exported": lambda options: tube.exported(),
    "shadow": lambda options: shadow.shadow(device=options.device),
    "scaling": lambda options: scaling.scaling(device=options.device),
    "projection-scaling": lambda options: scaling.projection_scaling(device=options.device),
    "processes": lambda options: scaling.world_sizes(),
    "callbacks": lambda options: scaling.callbacks(options.processes, device=options.device),
}
MEMORY = "memory"
CURVES = ("scaling", "projection-scaling", "processes")
ON_CPUS_ONLY = ("certificates", "validations", "exported", "processes", MEMORY)


def main() -> None:
    """Run the named benchmarks, print tables, and write JSON and figures where an option says so."""
    names = [*BENCHMARKS, MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=positive,
        default=projection.SIZES,
        help="units of the cells of projections and certificates",
    )
    parser.add_argument("--device", default="cpu", help=f"cpu or cuda; {', '.join(ON_CPUS_ONLY)} run on CPUs only")
    parser.add_argument("--processes", type=positive, default=1, help="processes of a run of callbacks, by DDP")
    parser.add_argument("--json", type=output_file, help="write the rows to this file")
    parser.add_argument(
        "--plot",
        type=output_file,
        help="draw ratios into this file, and curves of costs into one named after it, -curves",
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}. Got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    console = Console()
    chosen = options.names or [name for name in names if options.device == "cpu" or name not in ON_CPUS_ONLY]
    rows_by_name: dict[str, list[Comparison]] = {}
    for name in (name for name in chosen if name != MEMORY):
        with console.status(f"{name} ..."):
            rows_by_name[name] = list(BENCHMARKS[name](options))
        console.print(_table(rows_by_name[name], name))
    if MEMORY in chosen:
        sides = dict(truncation.peak_memory())
        console.print(
            f"Peak memory of a pass (LSTM, T=256, B=20, H=128, k=25): naive windows {sides['naive']:.0f} MiB, "
            f"truncated {sides['windowed']:.0f} MiB, {sides['naive'] / sides['windowed']:.1f} times less"
        )
    if options.json:
        measured = [row.to_dict() for rows in rows_by_name.values() for row in rows]
        write_text(options.json, json.dumps(measured, indent=1))
    if options.plot:
        from benchmarks.figures import draw_curves, draw_ratios  # the slowest import by far

        if ratios := [row for name, rows in rows_by_name.items() if name not in CURVES for row in rows]:
            draw_ratios(ratios, options.plot)
        if curves := [row for name, rows in rows_by_name.items() if name in CURVES for row in rows]:
            draw_curves(curves, options.plot.with_stem(f"{options.plot.stem}-curves"))


def _table(rows: Sequence[Comparison], title: str) -> Table:
    table = Table(title=f"{title}: torch {torch.__version__}, one thread; ratio = baseline / ours")
    extra = list(dict.fromkeys(name for row in rows for name in row.extra))
    for column in ("what", "size", "baseline", "baseline ms", "ours ms", "ratio", "spread", "error", *extra):
        table.add_column(column, justify="left" if column in ("what", "baseline") else "right")
    for row in rows:
        times = (f"{row.baseline_seconds * 1e3:.2f}", f"{row.ours_seconds * 1e3:.2f}")
        ratio = (f"{row.ratio:.3f}", f"{row.spread:.3f}", f"{row.error:.1e}")
        others = (f"{row.extra[name]:.7g}" if name in row.extra else "" for name in extra)
        table.add_row(row.name, str(row.size), row.baseline, *times, *ratio, *others)
    return table


if __name__ == "__main__":
    main()
