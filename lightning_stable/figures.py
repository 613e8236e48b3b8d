"""What the package's figures look like; drawn without pyplot: no display, and no state left in the user's process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The styles of a curve, by what it stands for.
_STYLES: dict[str, dict[str, Any]] = {
    "certified": {"color": "#c0392b", "linestyle": "--"},
    "largest": {"color": "#0b6bcb", "marker": "o", "markersize": 3},
    "mean": {"color": "#7fb3e6", "marker": "o", "markersize": 3},
    "level": {"color": "black", "linestyle": ":", "linewidth": 1},
}


def plot_decay(
    steps: Sequence[int], curves: Sequence[tuple[str, str, Sequence[float]]], *, xlabel: str, ylabel: str, title: str
) -> Figure:
    """Draw what decays with a number of steps, on a logarithmic scale.

    Args:
        steps: The number of steps, an integer for every point.
        curves: For each curve what it stands for (``"certified"``, ``"largest"``, ``"mean"`` or ``"level"``), its
            label, and its values.
        xlabel: What the steps are.
        ylabel: What the values are.
        title: The title; it may have several lines.

    Returns:
        A matplotlib figure with one panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for kind, label, values in curves:
        axes.plot(steps, values, label=label, **_STYLES[kind])
    axes.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)
    return figure


def tidy(*panels: Axes) -> None:
    """Leave out the upper and the right frame line of panels, and draw a faint grid."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
