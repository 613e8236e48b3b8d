"""``lightning-stable capacity``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_stable.experiments.capacity.options import CapacityOptions
from lightning_stable.options import Commands, add_command

ExperimentName = Literal["bits", "reals", "trainability"]


@dataclass(frozen=True, kw_only=True)
class Options(CapacityOptions):
    """Which experiment to run, and how.

    Attributes:
        experiment: One of the experiments.
    """

    experiment: ExperimentName = field(metadata={"metavar": "EXPERIMENT"})


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "capacity",
        Options,
        run,
        help="measure what recurrent networks can hold, how easily they learn, and what stability costs of both",
        description="bits: random labels learned by heart, against parameters. reals: numbers recalled, against units. "
        "trainability: the share of random hyperparameters that work, by task, cell and depth. Hyperparameters are "
        "searched for every cell, unconstrained and stable. Prints tables; writes results.json, results.csv, "
        "results.png, and trials.csv with every trial.",
        examples=[
            "bits                        within 15 minutes on 2 cores",
            "reals --cells rnn ugrnn --out runs/reals",
            "bits --budget paper --out runs/bits --resume",
            "bits --storage postgresql://user@host/searches    from several machines",
        ],
    )


def run(options: Options) -> int:
    """Return 0 if every network has a result, 1 otherwise."""
    from lightning_stable.experiments.capacity import capacity

    out = options.out or Path("runs") / f"capacity-{options.experiment}"
    return capacity.run(options.experiment, out, options)
