"""Figures drawn without pyplot: they need no display and leave no state in the user's process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_stable.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour for each kind of model, in all figures.
MODEL_COLOURS = {"unconstrained": "#8c8c8c", "stable": "#0b6bcb", "convolutional": "#d9820f"}
# One for each kind of window, and of the error it speaks of.
BOUND_COLOURS = {"certified": "#c0392b", "tube": "#e08e0b", "measured": "#1b8a5a"}
# The styles of a curve, by what it stands for.
_STYLES: dict[str, dict[str, Any]] = {
    "certified": {"color": BOUND_COLOURS["certified"], "linestyle": "--"},
    "tube": {"color": BOUND_COLOURS["tube"], "linestyle": "-."},
    "largest": {"color": BOUND_COLOURS["measured"], "marker": "o", "markersize": 3},
    "mean": {"color": "#8fcbb0", "marker": "o", "markersize": 3},
    "level": {"color": "black", "linestyle": ":", "linewidth": 1},
}


def axes(
    size: tuple[float, float], rows: int = 1, columns: int = 1, *, title: str | None = None, **arguments: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row, with a light grid and no frame at the top and the right.

    Args:
        size: Width and height of the figure, in inches.
        rows: The number of rows of panels.
        columns: The number of columns.
        title: The title of the figure.
        **arguments: Arguments of ``Figure.subplots``.
    """
    from matplotlib.figure import Figure  # the slowest import by far

    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **arguments).flatten())
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    if title is not None:
        figure.suptitle(title)
    return figure, panels


def log_axis(panel: Axes, name: Literal["x", "y"], subs: Sequence[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic, with plain numbers at the multiples ``subs`` of powers of ten and no other ticks."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set(**{f"{name}scale": "log"})
    axis = panel.xaxis if name == "x" else panel.yaxis
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def label_end(panel: Axes, text: str, place: tuple[float, float], colour: str) -> None:
    """Write what a curve is to the right of its last point, in its colour."""
    panel.annotate(
        text, place, (8, 0), textcoords="offset points", va="center", fontsize=9, color=colour, annotation_clip=False
    )


def plot_decay(
    steps: Sequence[int], curves: Sequence[tuple[str, str, Sequence[float]]], *, xlabel: str, ylabel: str, title: str
) -> Figure:
    """Draw what decays with a number of steps, on a logarithmic scale.

    Args:
        steps: The number of steps, an integer for every point.
        curves: For each curve what it stands for (``"certified"``, ``"tube"``, ``"largest"``, ``"mean"`` or
            ``"level"``), its label, and its values.
        xlabel: What the steps are.
        ylabel: What the values are.
        title: The title; it may have several lines.

    Returns:
        A matplotlib figure with one panel.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (panel,) = axes((6.5, 4))
    for kind, label, values in curves:
        panel.plot(steps, values, label=label, **_STYLES[kind])
    panel.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    panel.set_title(title, fontsize=11)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)  # beside the curves, never over one
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG and return its path, see :func:`~lightning_stable.files.replacing`."""
    with replacing(path) as written:
        figure.savefig(written, dpi=150)
    return path
