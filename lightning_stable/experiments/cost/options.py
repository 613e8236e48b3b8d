"""The options of the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lightning_stable.options import ExistingFolder, OutputFolder, Positive, Seed, between

TaskName = Literal["text", "jsb", "piano-midi"]
StudyName = Literal["models", "reasons"]


@dataclass(frozen=True)
class CostOptions:
    """What to train, and how.

    Attributes:
        out: Folder for results; runs whose results are in it are not made again.
        tasks: Tasks: Python's documentation by words, or a collection of music.
        data_dir: Folder with the files of the music, or with a folder for each (default: the cache, to which they are
            downloaded).
        studies: Models beside each other, or the reasons of a loss.
        only: Train these variants only, by name.
        rate: Largest certified rate.
        seeds: Seeds; three give a spread.
        units: Recurrent units.
        text_epochs: Epochs on text.
        music_epochs: Epochs on music.
        text_dropout: Dropout behind the recurrence on text.
        averaging: Decay of a moving average of the weights, which validations and tests see; 0 for none.
    """

    out: OutputFolder = Path("runs/cost")
    tasks: tuple[TaskName, ...] = ("text", "jsb")
    data_dir: ExistingFolder | None = None
    studies: tuple[StudyName, ...] = ("models",)
    only: tuple[str, ...] | None = field(default=None, metadata={"metavar": "VARIANT"})
    rate: Annotated[float, between("(0, 1)")] = 0.99
    seeds: tuple[Seed, ...] = field(default=(1, 2, 3), metadata={"metavar": "SEED"})
    units: Positive = 200
    text_epochs: Positive = 14
    music_epochs: Positive = 40
    text_dropout: Annotated[float, between("[0, 1)")] = 0.4
    averaging: Annotated[float, between("[0, 1)")] = 0.0
