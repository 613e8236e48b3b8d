"""Figures drawn without pyplot: they need no display and leave no state in the user's process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG and return its path; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
