"""The figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_stable.experiments.capacity.fits import Line
from lightning_stable.experiments.results import Row
from lightning_stable.figures import axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STABLE, FREE = "#0b6bcb", "#8c8c8c"
_KINDS = ((False, FREE, "unconstrained"), (True, STABLE, "stable"))


def plot_lines(
    rows: Sequence[Row],
    lines: Mapping[tuple[str, int], Sequence[Line | None]],
    path: Path,
    *,
    x: str,
    y: str,
    title: str,
    unit: str,
) -> Path:
    """Draw a panel per cell and depth: what was measured, and the fitted lines."""
    figure, panels = _panels(list(lines), title)
    for panel, (key, fitted) in zip(panels, lines.items(), strict=True):
        for (stable, colour, label), line in zip(_KINDS, fitted, strict=True):
            own = [row for row in rows if (row["cell"], row["layers"]) == key and row["stable"] == stable]
            places = [row[x] for row in own]
            text = label if line is None else f"{label}: {line.slope:.2f} {unit}"
            panel.plot(places, [row[y] for row in own], "o", color=colour, markersize=6, label=text)
            if line is not None:
                ends = [0, max(places)]
                panel.plot(ends, [line.intercept + line.slope * end for end in ends], color=colour, linewidth=1.2)
        panel.set(xlabel=x, ylabel=y if panel is panels[0] else "")
        panel.set_ylim(0, 1.25 * max(row[y] for row in rows))  # room for the legend
        panel.set_xlim(left=0)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    return save(figure, path)


def plot_knees(rows: Sequence[Row], path: Path, *, title: str) -> Path:
    """Draw two panels per cell and depth: the error of recall against values per unit, and reals against units."""
    keys = list(dict.fromkeys((row["cell"], row["layers"]) for row in rows))
    figure, panels = _panels(keys, title, lines=2, shared=False)
    above, below = panels[: len(keys)], panels[len(keys) :]
    for key, knee, reals in zip(keys, above, below, strict=True):
        own = [row for row in rows if (row["cell"], row["layers"]) == key]
        places = [1 + step / 50 for step in range(76)]
        knee.plot(
            [0.25, *places], [0.0, *(1 - 1 / place for place in places)], color="black", linestyle=":", linewidth=1
        )
        widest = max(row["units"] for row in own)
        for stable, colour, label in _KINDS:
            kind = [row for row in own if row["stable"] == stable]
            for row in kind:
                each = row["errors"]
                shade = 0.35 + 0.65 * row["units"] / widest
                # A network that recalls more values better can recall fewer, too: other trials went wrong.
                ahead = [
                    entry for index, entry in enumerate(each) if entry["error"] <= min(e["error"] for e in each[index:])
                ]
                for trials, style in ((each, "."), (ahead, "o-")):
                    knee.plot(
                        [entry["values"] / row["units"] for entry in trials],
                        [entry["error"] for entry in trials],
                        style,
                        color=colour,
                        alpha=shade,
                        markersize=4,
                        lw=1,
                    )
            reals.plot([row["units"] for row in kind], [row["reals"] for row in kind], "o-", color=colour, label=label)
        ends = [0, widest]
        reals.plot(ends, ends, color="black", linestyle=":", linewidth=1, label="bound of a linear read-out")
        knee.axvline(1, color="#dddddd", linewidth=1, zorder=0)
        first = key == keys[0]
        knee.set(xlabel="values to hold per unit", ylabel="error of recall" if first else "", ylim=(-0.03, 1.03))
        reals.set(xlabel="units", ylabel="reals held" if first else "", xlim=(0, None), ylim=(0, None), title="")
    handles, labels = below[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def plot_shares(rows: Sequence[Row], path: Path, *, title: str) -> Path:
    """Draw two panels per task: the share of good trials of every cell and depth, and the best loss."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = _panels([(name, None) for name in names], title, lines=2, shared=True)
    for column, name in enumerate(names):
        own = [row for row in rows if row["task"] == name]
        keys = list(dict.fromkeys((row["cell"], row["layers"]) for row in own))
        for line, field in enumerate(("good_fraction", "best_loss")):
            panel = panels[line * len(names) + column]
            for (stable, colour, label), shift in zip(_KINDS, (-0.2, 0.2), strict=True):
                kind = {(row["cell"], row["layers"]): row[field] for row in own if row["stable"] == stable}
                places = [index + shift for index, key in enumerate(keys) if key in kind]
                values = [kind[key] for key in keys if key in kind]
                panel.bar(places, values, 0.36, color=colour, label=label)
            ticks = [f"{cell} {layers}" for cell, layers in keys]
            panel.set_xticks(range(len(keys)), ticks, rotation=60, ha="right", fontsize=8)
            panel.set_ylim(0, 1.05)
            if column == 0:
                panel.set_ylabel("share of good trials" if line == 0 else "best loss / nothing learned")
            if line == 1:
                panel.set_title("")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def _panels(
    keys: Sequence[tuple[str, int | None]], title: str, lines: int = 1, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    count = len(keys)
    size = (max(5.0, 3.1 * count), 0.9 + 2.9 * lines)
    figure, panels = axes(size, lines, count, title=title, sharey="all" if shared else "row")
    for panel, (name, layers) in zip(panels, [*keys] * lines, strict=True):
        panel.set_title(name if layers in (None, 1) else f"{name}, {layers} layers")
    return figure, panels
