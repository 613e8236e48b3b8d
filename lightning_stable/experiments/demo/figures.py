"""The figures of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from lightning_stable.experiments.demo.runs import Distances, Run
from lightning_stable.figures import axes, log_axis, save

# From light to dark with the window.
_WINDOW_COLOURS = ("#a6cee3", "#5aa5d6", "#1f78b4", "#08306b", "#041a3b")


def plot_runs(runs: list[Run], floor: float, rate: float, path: Path) -> Path:
    """Draw the validation curves with the certified rate underneath, and write a PNG."""
    figure, (top, bottom) = axes((7.5, 6), rows=2, sharex=True, height_ratios=(3, 2))
    colours = {"unconstrained": "#8c8c8c", "stable": "#0b6bcb"}
    for run in runs:
        epochs = range(1, len(run.perplexity) + 1)
        label = f"{run.name}: test {run.test_perplexity:.1f}"
        top.plot(epochs, run.perplexity, marker="o", color=colours[run.name], label=label)
    top.axhline(floor, color="black", linestyle=":", linewidth=1)
    top.annotate(f"unigram model {floor:.0f}", (1, floor), xytext=(0, -12), textcoords="offset points", fontsize=9)
    top.set(ylabel="validation perplexity", title="The same network, unconstrained and certified stable")
    log_axis(top, "y", subs=(1, 1.5, 2, 3, 5, 7))
    top.legend(frameon=False)
    free, stable = runs
    bottom.axhline(rate, color="#c0392b", linewidth=1, label=f"target {rate}")
    bottom.plot(range(1, len(stable.rates) + 1), stable.rates, marker="o", color=colours["stable"], label="stable")
    bottom.set(ylim=(min([*stable.rates, rate]) - 0.005, rate + 0.005), ylabel="certified rate", xlabel="epoch")
    off_scale = f"unconstrained: {min(free.rates):.2g} and more, off the scale"
    bottom.text(0.02, 0.06, off_scale, transform=bottom.transAxes, color=colours["unconstrained"], fontsize=9)
    bottom.legend(frameon=False, loc="lower right")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save(figure, path)


def plot_distances(distances: Mapping[str, Distances], path: Path) -> Path:
    """Draw the relative weight distance of twins against the training step, one panel per model; write a PNG."""
    figure, panels = axes((9, 4), columns=len(distances), sharey=True)
    for panel, (name, by_window) in zip(panels, distances.items(), strict=True):
        for colour, (window, curve) in zip(_WINDOW_COLOURS, sorted(by_window.items()), strict=False):
            steps, values = zip(*curve, strict=True)
            panel.plot(steps, values, color=colour, label=f"window {window}")
        panel.set(yscale="log", xlabel="training step", title=f"{name} model and its twins")
    panels[0].set_ylabel("weight distance / distance travelled")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, path)
