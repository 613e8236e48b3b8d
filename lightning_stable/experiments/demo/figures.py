"""The figures of the demo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from lightning_stable.experiments.demo.runs import Distances, Run
from lightning_stable.figures import BOUND_COLOURS, MODEL_COLOURS, axes, label_end, log_axis, save

# From light to dark with the window.
_WINDOW_COLOURS = ("#7fb3d5", "#4a98cf", "#1f78b4", "#08306b", "#041a3b")


def plot_runs(runs: list[Run], floor: float, rate: float, path: Path) -> Path:
    """Draw the validation curves with the certified rates underneath, and write a PNG."""
    figure, (top, bottom) = axes((7.5, 6), rows=2, sharex=True, height_ratios=(3, 2))
    for run in runs:
        colour = MODEL_COLOURS[run.name]
        epochs = range(1, len(run.perplexity) + 1)
        top.plot(epochs, run.perplexity, marker="o", color=colour)
        certified = [value if math.isfinite(value) else math.nan for value in run.rates]
        bottom.plot(epochs, certified, marker="o", color=colour)
        value = certified[-1]
        if math.isfinite(value):
            label_end(bottom, f"{run.name}:\n{value:.3g}".replace("e+", "e"), (epochs[-1], value), colour)
        else:
            note = f"{run.name}: no finite rate"
            bottom.annotate(note, (0.01, 0.95), xycoords="axes fraction", va="top", fontsize=9, color=colour)
    # The curves end near each other: their labels stand above each other.
    ends = sorted(runs, key=lambda run: run.perplexity[-1])
    for run, va in zip(ends, ("top", "bottom"), strict=True):
        top.annotate(
            f"{run.name}:\ntest {run.test_perplexity:.1f}",
            (len(run.perplexity), run.perplexity[-1]),
            (8, 0),
            textcoords="offset points",
            va=va,
            fontsize=9,
            color=MODEL_COLOURS[run.name],
            annotation_clip=False,
        )
    top.axhline(floor, color="black", linestyle=":", linewidth=1)
    top.annotate(
        f"word frequencies only: {floor:.0f}",
        (0.99, floor),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
    )
    top.set(ylabel="validation perplexity", title="The same network, unconstrained and certified stable")
    log_axis(top, "y", subs=(1, 1.5, 2, 3, 5, 7))
    top.margins(y=0.12)
    bottom.axhline(1, color=BOUND_COLOURS["certified"], linewidth=1, zorder=1)
    bottom.annotate(
        f"stable below 1 (target {rate:g})",
        (0.01, 1),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom",
        fontsize=9,
        color=BOUND_COLOURS["certified"],
    )
    bottom.set(yscale="log", ylabel="certified rate per step", xlabel="epoch")
    bottom.set(xlim=(0.7, len(runs[0].perplexity) + 0.3), ylim=(0.1, None))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return save(figure, path)


def plot_distances(distances: Mapping[str, Distances], path: Path) -> Path:
    """Draw the relative weight distance of twins against the training step, one panel per model; write a PNG."""
    figure, panels = axes((9, 4), columns=len(distances), sharey=True)
    for panel, (name, by_window) in zip(panels, distances.items(), strict=True):
        for colour, (window, curve) in zip(_WINDOW_COLOURS, sorted(by_window.items()), strict=False):
            steps, values = zip(*curve, strict=True)
            panel.plot(steps, values, color=colour)
            label_end(panel, f"window {window}", (steps[-1], values[-1]), colour)
        panel.set(yscale="log", xlabel="training step", title=f"{name} model and its twins")
    panels[0].set_ylabel("weight distance / distance travelled")
    return save(figure, path)
