"""Figures for every logger that takes them, and files of them where a folder is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_stable import checks, files
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
            with _going_on(trainer, type(logger).__name__):
                add_figure(f"{kind}/{name}", plot(), trainer.global_step)
    if folder is not None:
        file = f"{kind.replace('_', '-')}-{name}-step-{trainer.global_step}.png"
        with _going_on(trainer, str(folder)):
            save(plot(), folder / file.replace("/", "-"))  # keys of a ModuleDict may have slashes


# Where figures could not be written to, by trainer.
_FAILED: WeakKeyDictionary[Trainer, set[str]] = WeakKeyDictionary()


@contextmanager
def _going_on(trainer: Trainer, where: str) -> Iterator[None]:
    """Write inside the block; if that fails, warn once: no training ends because of a figure."""
    try:
        yield
    except (OSError, ValueError) as error:  # the path may be no folder's by now
        failed = _FAILED.setdefault(trainer, set())
        if where not in failed:
            failed.add(where)
            rank_zero_warn(f"Figures for {where!r} cannot be written; training goes on without them. {error}")


def check_folder(figures: object) -> Path | None:
    """Return the folder for figures, or None.

    Raises:
        TypeError: If ``figures`` is neither a path nor None.
        ValueError: If it is a path that no folder can have.
    """
    return None if figures is None else checks.path("figures", figures)


def check_writable(folder: Path | None) -> None:
    """Check, before a run, that a folder for figures can be made and written to; nothing is left.

    Raises:
        ValueError: If there is a file at its path or above it, or it may not be written to.
    """
    if folder is None:
        return
    try:
        files.check_folder(folder.absolute())
    except ValueError as error:
        raise ValueError(f"`figures` must be the path of a folder that can be written to. {error}") from error
