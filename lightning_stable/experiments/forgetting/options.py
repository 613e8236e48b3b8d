"""The options of the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lightning_stable.experiments.demo.options import CellName
from lightning_stable.options import OutputFolder, Positive, Seed, between

BitTask = Literal["hold", "parity"]


@dataclass(frozen=True)
class ForgettingOptions:
    """What to train, and how.

    Attributes:
        out: Folder for results; runs whose results are in it are not made again.
        tasks: Tasks: to hold the first bit, or the parity of all bits.
        cells: Cells to compare.
        rates: Largest certified rates; 1 trains without a projection.
        lengths: Steps to hold the bit, tried in this order until a length fails with all seeds.
        seeds: Seeds; the best counts.
        units: Recurrent units.
        steps: Training steps.
    """

    out: OutputFolder = Path("runs/forgetting")
    tasks: tuple[BitTask, ...] = ("hold", "parity")
    cells: tuple[CellName, ...] = field(default=("rnn", "lstm", "gru"), metadata={"metavar": "CELL"})
    rates: tuple[Annotated[float, between("(0, 1]")], ...] = field(
        default=(0.9, 0.95, 0.99, 1.0), metadata={"metavar": "RATE"}
    )
    lengths: tuple[Positive, ...] = field(default=(5, 10, 20, 50, 100, 200), metadata={"metavar": "LENGTH"})
    seeds: tuple[Seed, ...] = field(default=(1, 2, 3), metadata={"metavar": "SEED"})
    units: Positive = 32
    steps: Positive = 1500
