"""Figures of what was measured: ratios as bars, costs as curves with the fitted power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression

from benchmarks.timing import Comparison
from lightning_stable.figures import axes, log_axis, save

_FASTER, _SLOWER, _FIT = "#2a6f97", "#c8553d", "#888888"


def draw_ratios(rows: Sequence[Comparison], path: Path) -> None:
    """Draw a bar for every comparison, from 1 to its ratio, with the spread."""
    figure, (panel,) = axes((9, 0.8 + 0.26 * len(rows)))
    places = range(len(rows), 0, -1)
    colours = [_FASTER if row.ratio >= 1 else _SLOWER for row in rows]
    panel.barh(places, [row.ratio - 1 for row in rows], left=1, color=colours, height=0.7)
    panel.errorbar(
        [row.ratio for row in rows], places, xerr=[row.spread / 2 for row in rows], fmt="none", ecolor="black", lw=0.8
    )
    panel.set_yticks(places, [f"{row.name}, {row.size}, against {row.baseline}" for row in rows], fontsize="small")
    panel.axvline(1, color="black", lw=0.8)
    panel.set(xlabel="times as fast as the baseline", ylim=(0.3, len(rows) + 0.7))
    log_axis(panel, "x")
    panel.grid(visible=False, axis="y")
    save(figure, path)


def draw_curves(rows: Sequence[Comparison], path: Path) -> None:
    """Draw a panel for every axis: seconds over size, and the fitted power of the size."""
    panels: dict[str, list[Comparison]] = {}
    for row in rows:
        panels.setdefault(row.name, []).append(row)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, places = axes((3.2 * columns, 2.7 * lines), lines, columns)
    for unused in places[len(panels) :]:
        unused.remove()
    for panel, (name, points) in zip(places, panels.items(), strict=False):
        sizes, milliseconds = [p.size for p in points], [1e3 * p.ours_seconds for p in points]
        power = linear_regression([math.log(s) for s in sizes], [math.log(m) for m in milliseconds])
        panel.plot(sizes, [math.exp(power.intercept) * s**power.slope for s in sizes], "--", color=_FIT, lw=1)
        panel.plot(sizes, milliseconds, "o-", color=_FASTER)
        panel.set_title(name, fontsize="small")
        panel.set(xlabel=points[0].baseline.rsplit(" ", 1)[0], ylabel="milliseconds")
        log_axis(panel, "x")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        log_axis(panel, "y")
    save(figure, path)
