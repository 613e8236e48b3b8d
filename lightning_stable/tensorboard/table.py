"""A row for every run in TensorBoard's table of hyperparameters.

TensorBoard takes the first of several descriptions of a run, and the columns from the first run that names any. So
every run names the same columns, and is described before Lightning describes it, which it does with
``default_hp_metric`` when a fit starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict, _sanitize_params
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stable.tensorboard.board import OWN, Board, boards_of, tensorboard_loggers
from lightning_stable.trainers import callbacks_of

_COLUMNS = {"rate": 0.0, "window": 0}
_HIDDEN = ("_class_path", "_instantiator")  # LightningCLI's
_METRICS = (
    "stability/rate",
    "shadow/compared/val_loss",
    "shadow/val_loss_gap",
    "shadow/val_weight_distance_relative",
    "shadow/val_prediction_distance_relative",
)


class Entries(NamedTuple):
    """What a callback adds to the row of its run.

    Attributes:
        hyperparameters: Values by name.
        metrics: Tags of scalars whose last values are shown.
    """

    hyperparameters: Mapping[str, float]
    metrics: tuple[str, ...]


@runtime_checkable
class Tabulated(Protocol):
    """A callback that adds something to the row of its run."""

    def table_entries(self, trainer: Trainer) -> Entries:
        """Return what it adds; called when a fit begins and when it ends."""


def merged(own: Mapping[str, Any], entries: list[Entries]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the hyperparameters of a run, the user's own included, and the tags of its metrics.

    Args:
        own: The user's hyperparameters. One with the name of an entry stays, unless it is None; the entry is then
            called ``stability/<name>``.
        entries: What the callbacks add. Several values of one name become a string of them all.
    """
    values: dict[str, list[float]] = {}
    for entry in entries:
        for name, value in entry.hyperparameters.items():
            values.setdefault(name, []).append(value)
    row = dict(own)
    for name, several in values.items():
        key = name if row.get(name) is None else f"stability/{name}"
        row[key] = several[0] if len(several) == 1 else " ".join(map(str, several))
    metrics = dict.fromkeys((*_METRICS, *(tag for entry in entries for tag in entry.metrics)))
    return row, tuple(metrics)


def begin_table(trainer: Trainer, module: LightningModule) -> None:
    """Describe the run before Lightning does, if it is about to; for a callback's ``setup``."""
    for board, logger in _with_loggers(trainer):
        if logger._default_hp_metric:
            _write(board, logger, trainer, module, begin=True)


def end_table(trainer: Trainer, module: LightningModule) -> None:
    """Describe the run if it is not described yet, and note that it is done; for the end of a fit."""
    for board, logger in _with_loggers(trainer):
        _write(board, logger, trainer, module, begin=not logger._default_hp_metric)


def _with_loggers(trainer: Trainer) -> list[tuple[Board, TensorBoardLogger]]:
    # Several callbacks write the same row; one of them is enough.
    return list(zip(boards_of(trainer), tensorboard_loggers(trainer), strict=False))


def _write(board: Board, logger: TensorBoardLogger, trainer: Trainer, module: LightningModule, *, begin: bool) -> None:
    from torch.utils.tensorboard.summary import hparams

    callbacks = callbacks_of(trainer, Tabulated)
    row, tags = merged(_own(logger, trainer, module), [callback.table_entries(trainer) for callback in callbacks])
    metrics = dict.fromkeys((board.prefix + tag for tag in tags), 0.0)
    row = {name: value for name, value in row.items() if value is not None}
    columns, _, _ = hparams(_COLUMNS | row, metrics)  # type: ignore[no-untyped-call]
    _, start, end = hparams(row, metrics)  # type: ignore[no-untyped-call]
    with board.going_on():
        writer = board.run(OWN)._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in (columns, start, end) if begin else (end,):
            writer.add_summary(summary)


def _own(logger: TensorBoardLogger, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the user's hyperparameters as Lightning writes them; None stays, for :func:`merged` to fill in."""
    own: dict[str, Any] = {**_convert_params(logger.hparams)}
    for part in (module, getattr(trainer, "datamodule", None)):
        if part is not None and part._log_hyperparams:
            own |= _convert_params(part.hparams_initial)
    own = _flatten_dict({name: value for name, value in own.items() if name not in _HIDDEN})
    return {name: value if value is None else _sanitize_params({name: value})[name] for name, value in own.items()}
