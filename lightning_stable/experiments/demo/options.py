"""The options of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lightning_stable.options import OutputFolder, Positive, Seed, between

CellName = Literal["rnn", "irnn", "ugrnn", "gru", "lstm", "intersection", "leaky", "mingru", "minlstm"]


@dataclass(frozen=True)
class DemoOptions:
    """What both trainings have in common, and what is asked of the stable one.

    Attributes:
        out: Folder for results.
        epochs: Epochs per model.
        cell: Recurrent cell.
        hidden_size: Recurrent units.
        rate: Largest certified rate.
        gate_bound: Largest value of the forget or update gate (default: rate squared).
        longest_time_constant: Start the stable model from small recurrent weights and memories of 1 to so many steps,
            as spread_time_scales_ makes them (default: from the weights of the unconstrained one).
        window: Inputs the twins see.
        distance_steps: Steps of the last comparison.
        seed: Seed of both trainings.
        limit_batches: Batches per epoch, for a quick look (default: all).
    """

    out: OutputFolder = Path("runs/demo")
    epochs: Positive = 6
    cell: CellName = "lstm"
    hidden_size: Positive = 128
    rate: Annotated[float, between("(0, 1)")] = 0.99
    gate_bound: Annotated[float, between("(0, 1)")] | None = None
    longest_time_constant: Annotated[float, between("(1, inf)")] | None = None
    window: Positive = 10
    distance_steps: Positive = 80
    seed: Seed = 1
    limit_batches: Positive | None = None
