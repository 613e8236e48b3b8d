"""The options of the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lightning_stable.experiments.demo.options import CellName
from lightning_stable.options import ExistingFolder, OutputFolder, Positive, Seed, between

TaskName = Literal["text", "music"]


@dataclass(frozen=True)
class PenaltyOptions:
    """What to train, and how.

    Attributes:
        out: Folder for results; runs whose results are in it are not made again.
        tasks: Tasks: Python's documentation by words, or a collection of music.
        music: Collection of music.
        data_dir: Folder with its file (default: the cache, to which it is downloaded).
        cells: Cells to compare.
        windows: Windows of the penalty.
        weights: Weights of the penalty.
        rate: Largest certified rate of the projection.
        seeds: Seeds; three give a spread.
        units: Recurrent units.
        text_epochs: Epochs on text.
        music_epochs: Epochs on music.
        tolerance: Error of an output, as a share of the mean norm of the outputs.
        twin: Window of a twin that trains beside every recurrent model (default: no twins); its distance in the end
            joins the results.
    """

    out: OutputFolder = Path("runs/penalty")
    tasks: tuple[TaskName, ...] = ("music", "text")
    music: Literal["jsb", "piano-midi"] = "jsb"
    data_dir: ExistingFolder | None = None
    cells: tuple[CellName, ...] = field(default=("lstm", "gru"), metadata={"metavar": "CELL"})
    windows: tuple[Positive, ...] = field(default=(6, 12, 24), metadata={"metavar": "WINDOW"})
    weights: tuple[Annotated[float, between("(0, inf)")], ...] = field(
        default=(0.3, 1.0, 3.0, 10.0, 30.0), metadata={"metavar": "WEIGHT"}
    )
    rate: Annotated[float, between("(0, 1)")] = 0.99
    seeds: tuple[Seed, ...] = field(default=(1,), metadata={"metavar": "SEED"})
    units: Positive = 200
    text_epochs: Positive = 8
    music_epochs: Positive = 40
    tolerance: Annotated[float, between("(0, 1)")] = 0.05
    twin: Positive | None = None
