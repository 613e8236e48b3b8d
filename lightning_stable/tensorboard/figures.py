"""Figures, to every logger that takes them and to files where a folder is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(trainer: Trainer, kind: str, name: str, plot: Callable[[], Figure], folder: Path | None = None) -> None:
    """Hand a figure to the loggers, as ``<kind>/<name>``, and write ``<kind>-<name>-step-<n>.png``.

    Args:
        trainer: Its loggers and global step.
        kind: What the figure shows.
        name: Of what.
        plot: Draws the figure; once per destination, as some loggers close what they are given.
        folder: For the file; made if need be.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        if add_figure is not None:
            add_figure(f"{kind}/{name}", plot(), trainer.global_step)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = f"{kind.replace('_', '-')}-{name}-step-{trainer.global_step}.png"
        plot().savefig(folder / file.replace("/", "-"), dpi=150)  # keys of a ModuleDict may have slashes


def check_folder(figures: Any) -> Path | None:
    """The folder, or None.

    Raises:
        ValueError: If it is neither a path nor None.
    """
    if figures is not None and not isinstance(figures, (str, Path)):
        raise ValueError(f"`figures` must be the path of a folder, or None. Got {figures!r}.")
    return None if figures is None else Path(figures)
