"""Figures of what was measured: ratios as bars, costs as curves with the fitted power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.timing import Comparison

_FASTER, _SLOWER, _FIT = "#2a6f97", "#c8553d", "#888888"


def draw_ratios(rows: Sequence[Comparison], path: Path) -> None:
    """A bar for every comparison, from 1 to its ratio, with the spread."""
    axes = (figure := Figure(figsize=(9, 0.8 + 0.26 * len(rows)), layout="constrained")).add_subplot()
    places = range(len(rows), 0, -1)
    colours = [_FASTER if row.ratio >= 1 else _SLOWER for row in rows]
    axes.barh(places, [row.ratio - 1 for row in rows], left=1, color=colours, height=0.7)
    axes.errorbar(
        [row.ratio for row in rows], places, xerr=[row.spread / 2 for row in rows], fmt="none", ecolor="black", lw=0.8
    )
    axes.set_yticks(places, [f"{row.name}, {row.size}, against {row.baseline}" for row in rows], fontsize="small")
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlabel="times as fast as the baseline", ylim=(0.3, len(rows) + 0.7))
    _plain_numbers(axes.xaxis)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def draw_curves(rows: Sequence[Comparison], path: Path) -> None:
    """A panel for every axis: seconds over size, and the power of the size that was fitted."""
    panels: dict[str, list[Comparison]] = {}
    for row in rows:
        panels.setdefault(row.name, []).append(row)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * lines), layout="constrained")
    for place, (name, points) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        sizes, milliseconds = [p.size for p in points], [1e3 * p.ours_seconds for p in points]
        power = linear_regression([math.log(s) for s in sizes], [math.log(m) for m in milliseconds])
        axes.plot(sizes, [math.exp(power.intercept) * s**power.slope for s in sizes], "--", color=_FIT, lw=1)
        axes.plot(sizes, milliseconds, "o-", color=_FASTER)
        axes.set_title(name, fontsize="small")
        axes.set(xscale="log", yscale="log", xlabel=points[0].baseline.rsplit(" ", 1)[0], ylabel="milliseconds")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        _plain_numbers(axes.yaxis)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10 on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
