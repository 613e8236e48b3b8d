"""Figures for every logger that takes them, and files of them where a folder is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from lightning_stable import checks
from lightning_stable.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(trainer: Trainer, kind: str, name: str, plot: Callable[[], Figure], folder: Path | None = None) -> None:
    """Hand a figure to the loggers, as ``<kind>/<name>``, and write ``<kind>-<name>-step-<n>.png``.

    Args:
        trainer: The trainer, with its loggers and global step.
        kind: What the figure shows.
        name: What it shows this of.
        plot: Draws the figure; it is called once per destination, as some loggers close what they get.
        folder: Folder for the file, made where it is missing; None writes none.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        if add_figure is not None:
            add_figure(f"{kind}/{name}", plot(), trainer.global_step)
    if folder is not None:
        file = f"{kind.replace('_', '-')}-{name}-step-{trainer.global_step}.png"
        save(plot(), folder / file.replace("/", "-"))  # keys of a ModuleDict may have slashes


def check_folder(figures: object) -> Path | None:
    """Return the folder for figures, or None.

    Raises:
        TypeError: If ``figures`` is neither a path nor None.
        ValueError: If it is a path that no folder can have.
    """
    return None if figures is None else checks.path("figures", figures)
