"""``lightning-stable capacity``: what it is given; nothing here waits for torch."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from lightning_stable.commands.options import Commands, positive

EXPERIMENTS = ("bits", "reals", "trainability")


def add_capacity(commands: Commands) -> None:
    """Add ``capacity``."""
    parser = commands.add_parser(
        "capacity",
        help="measure what recurrent networks can hold, how easily they learn, and what stability costs of both",
        description="bits: random labels learned by heart, against parameters. reals: numbers recalled, against units. "
        "trainability: the share of random hyperparameters that work, by task, cell and depth. Hyperparameters are "
        "searched for every cell, unconstrained and stable. Prints tables; writes results.json, results.csv, "
        "results.png, and trials.csv with every trial.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable capacity bits                        within 15 minutes on 2 cores\n"
        "  lightning-stable capacity reals --cells rnn ugrnn --out runs/reals\n"
        "  lightning-stable capacity bits --budget paper --out runs/bits --resume\n"
        "  lightning-stable capacity bits --storage postgresql://user@host/searches    from several machines",
    )
    add = parser.add_argument
    add("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    add("--budget", choices=("small", "paper"), default="small", help="how much to search (default: %(default)s)")
    add("--out", type=Path, help="folder for everything written (default: runs/capacity-EXPERIMENT)")
    add("--seed", type=int, default=0, help="seed of the searches (default: %(default)s)")
    add("--jobs", type=positive, help="processes (default: one per core; one on a GPU)")
    add("--cells", nargs="+", metavar="CELL", help="cells to compare (default: those of the budget)")
    add("--trials", type=positive, help="trials per network (default: those of the budget)")
    add("--steps", type=positive, help="gradient steps per trial (default: those of the budget)")
    add("--resume", action="store_true", help="go on with the searches in OUT, or join processes that use them")
    add("--storage", metavar="URL", help="database of the searches, for many machines (default: OUT/search.db)")
    add("--data-dir", type=Path, help="folder with text8, for trainability (default: Python's own documentation)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from lightning_stable.experiments import capacity

    chosen = {field.name: getattr(options, field.name) for field in fields(capacity.Options)}
    chosen["cells"] = None if options.cells is None else tuple(options.cells)
    out = options.out or Path("runs") / f"capacity-{options.experiment}"
    return capacity.run(options.experiment, out, capacity.Options(**chosen))
