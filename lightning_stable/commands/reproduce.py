"""``lightning-stable reproduce``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_stable.experiments.reproduce.options import ReproduceOptions
from lightning_stable.options import Commands, add_command

TaskName = Literal[
    "jsb",
    "nottingham",
    "piano-midi",
    "musedata",
    "atis",
    "wikitext2",
    "ptb-char",
    "ptb-word",
    "copy",
    "adding",
]


@dataclass(frozen=True, kw_only=True)
class Options(ReproduceOptions):
    """Which task to reproduce, and how.

    Attributes:
        task: One of the paper's tasks.
    """

    task: TaskName = field(metadata={"metavar": "TASK"})


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "reproduce",
        Options,
        run,
        help="train the pairs of one of the paper's tasks and compare them with published figures",
        description="Train every cell unconstrained and stable, recurrent and truncated, and convolutional networks, "
        "on one of the paper's tasks; print a table beside published figures; write results.json, results.csv, "
        "results.png and TensorBoard runs. Every run is an ordinary LightningCLI configuration under OUT/runs.",
        examples=[
            "jsb --data-dir data/jsb_chorales",
            "copy --only gru gru-stable tcn",
            "jsb --seeds 0 1 2 --windows 5 10",
            "jsb --out runs/jsb --resume",
        ],
    )


def run(options: Options) -> int:
    """Return 0 if every run was finished, 1 otherwise."""
    from lightning_stable.experiments.reproduce import reproduce
    from lightning_stable.experiments.reproduce.task import load_task

    return reproduce.reproduce(load_task(options.task), options.out or Path("runs") / options.task, options)
