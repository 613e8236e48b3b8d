"""The ``lightning-stable`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from lightning_stable.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand each."""
    parser = argparse.ArgumentParser(
        prog="lightning-stable",
        description="Provably stable recurrent networks for PyTorch Lightning.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  lightning-stable demo --out runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train an unconstrained and a certified stable LSTM, each with its twin, on Python's own documentation",
        description="Train the same LSTM twice on Python's own documentation (no download), unconstrained and "
        "certified stable, each beside a feed-forward twin that sees the last inputs only, and compare them all. "
        "About 4 minutes on 2 CPU cores.",
    )
    add = demo.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="folder for results (default: %(default)s)")
    add("--epochs", type=_positive, default=6, help="epochs per model (default: %(default)s)")
    add("--cell", choices=("lstm", "gru", "rnn"), default="lstm", help="recurrent cell (default: %(default)s)")
    add("--hidden-size", type=_positive, default=128, help="recurrent units (default: %(default)s)")
    add("--rate", type=float, default=0.99, help="largest certified rate (default: %(default)s)")
    add("--gate-bound", type=float, help="largest value of the forget or update gate (default: rate squared)")
    add("--window", type=_positive, default=10, help="inputs the twins see (default: %(default)s)")
    add("--distance-steps", type=_positive, default=80, help="steps of the last comparison (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of both trainings (default: %(default)s)")
    add("--limit-batches", type=_positive, help="batches per epoch, for a quick look (default: all)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is returned. Errors take one line unless ``--traceback`` is given."""
    options = build_parser().parse_args(arguments)
    # Imported late: --help should not have to wait for torch.
    from lightning_stable import demo

    chosen = {field.name: getattr(options, field.name) for field in fields(demo.Options)}
    try:
        return demo.run_demo(options.out, demo.Options(**chosen))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.traceback:
            raise
        sys.stderr.write(f"lightning-stable: {type(error).__name__}: {error}\n")
        return 2


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Got {text}")
    return value
