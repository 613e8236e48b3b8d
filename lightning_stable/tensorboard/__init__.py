"""What the callbacks show in TensorBoard: a page of charts, runs to compare with, figures and a table of runs."""

from lightning_stable.tensorboard.board import Board, boards_of, flush, writes_to_tensorboard
from lightning_stable.tensorboard.charts import (
    Charts,
    compared,
    comparison_charts,
    layout,
    projection_charts,
    window_chart,
)
from lightning_stable.tensorboard.figures import check_folder, check_writable, draw
from lightning_stable.tensorboard.table import Entries, Tabulated, begin_table, end_table

__all__ = [
    "Board",
    "Charts",
    "Entries",
    "Tabulated",
    "begin_table",
    "boards_of",
    "check_folder",
    "check_writable",
    "compared",
    "comparison_charts",
    "draw",
    "end_table",
    "flush",
    "layout",
    "projection_charts",
    "window_chart",
    "writes_to_tensorboard",
]
