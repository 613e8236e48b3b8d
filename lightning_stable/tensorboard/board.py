"""The runs of a TensorBoardLogger: its own, and those beside it that hold what its values are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_stable.tensorboard.charts import Charts, layout
from lightning_stable.trainers import classes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OWN, THEORY, STATISTICAL, TUBE = "", "theory", "statistical", "tube"


class Board:
    """Writes to the run of a logger, and to runs in folders below it.

    Args:
        writer: The writer of the logger's own run.
        folder: The folder of that run.
        prefix: What the logger puts before every tag.

    Attributes:
        folder: The folder of the logger's own run.
        prefix: What the logger puts before every tag.
        charts: The page as it is shown now; empty before the first call of :meth:`show`.
    """

    def __init__(self, writer: SummaryWriter, folder: str, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        self.charts: Charts = {}
        self._runs = {OWN: writer}
        self._has_failed = False

    def run(self, name: str) -> SummaryWriter:
        """Return the writer of a run below the logger's own, or of that run for the empty name."""
        if name not in self._runs:
            from torch.utils.tensorboard import SummaryWriter

            self._runs[name] = SummaryWriter(f"{self.folder}/{name}")
        return self._runs[name]

    def scalars(self, values: Mapping[str, float], step: int, run: str = OWN) -> None:
        """Write the finite ones of the values to a run."""
        with self.going_on():
            for tag, value in values.items():
                if math.isfinite(value):
                    self.run(run).add_scalar(self.prefix + tag, value, step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Write the distribution of each tensor's entries to the logger's run, where they are finite."""
        with self.going_on():
            for tag, entries in values.items():
                if entries.isfinite().all():
                    self.run(OWN).add_histogram(self.prefix + tag, entries, step)

    def show(self, charts: Charts) -> None:
        """Add charts to the page, and write it if they are new.

        The last layout of a run is the one that counts, and TensorBoard shows the layouts of all runs together. So
        this one goes to the run ``theory``: a user's own layout in the logger's run stays.
        """
        new = {title: [*self.charts.get(title, []), *tags] for title, tags in charts.items()}
        merged = self.charts | {title: list(dict.fromkeys(tags)) for title, tags in new.items()}
        if merged != self.charts:
            self.charts = merged
            with self.going_on():
                self.run(THEORY).add_custom_scalars(layout(merged, self.prefix))

    def flush(self) -> None:
        """Write everything to disk and close the runs below the logger's; a later value opens them again."""
        for name, writer in self._runs.items():
            if name != OWN:
                with self.going_on():
                    writer.close()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Write inside the block; if that fails, as on a full disk, warn once: no training ends because of it."""
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                rank_zero_warn(f"TensorBoard's runs below {self.folder!r} cannot be written, and miss values. {error}")


# A logger may be pickled or copied: nothing is kept on it.
_BOARDS: WeakKeyDictionary[TensorBoardLogger, Board] = WeakKeyDictionary()


def writes_to_tensorboard(trainer: Trainer) -> bool:
    """Return whether the trainer has a TensorBoardLogger; the answer is the same in all processes."""
    return bool(tensorboard_loggers(trainer))


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the trainer's TensorBoardLoggers, of whichever package, in their order."""
    kinds = classes(".loggers", "TensorBoardLogger")
    return [cast(TensorBoardLogger, logger) for logger in trainer.loggers if isinstance(logger, kinds)]


def last_step(trainer: Trainer) -> int:
    """Return the step of Lightning's log lines: it counts batches that stepped, not steps of several optimizers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def boards_of(trainer: Trainer) -> list[Board]:
    """Return one board per TensorBoardLogger; none outside of the first process."""
    return [_board(logger) for logger in tensorboard_loggers(trainer)] if trainer.is_global_zero else []


def flush(trainer: Trainer) -> None:
    """Write the boards of all loggers to disk, see :meth:`Board.flush`."""
    for board in boards_of(trainer):
        board.flush()


def _board(logger: TensorBoardLogger) -> Board:
    if logger not in _BOARDS:
        prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
        _BOARDS[logger] = Board(logger.experiment, logger.log_dir, prefix)
    return _BOARDS[logger]
