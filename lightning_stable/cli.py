"""The ``lightning-stable`` command."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from lightning_stable.commands import capacity, certify, demo, export, lightning, profile, reproduce
from lightning_stable.options import TRACEBACK
from lightning_stable.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subcommand for every file of ``commands``."""
    parser = argparse.ArgumentParser(
        prog="lightning-stable",
        description="Provably stable recurrent networks for PyTorch Lightning.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable demo --out runs/demo\n"
        "  lightning-stable reproduce copy --out runs/copy\n"
        "  lightning-stable fit --config config.yaml\n"
        "  lightning-stable certify runs/copy/runs/gru/checkpoints/best.ckpt",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--traceback", action="store_true", help=TRACEBACK)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, reproduce, capacity, certify, profile, export, lightning):
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. An error takes one line unless ``--traceback`` is given."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    plain = [word for word in words if word != "--traceback"]  # which may stand anywhere
    run: Callable[[], int]
    if plain and plain[0] in lightning.COMMANDS:
        run = partial(lightning.run, plain)
    else:
        options = build_parser().parse_args(plain)
        run = partial(options.run, options)
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if plain != words:
            traceback.print_exc()
        else:
            message = " ".join(str(error).split())
            sys.stderr.write(f"lightning-stable: {type(error).__name__}: {message}\n")
        return 2  # with a traceback too: 1 is an answer of `certify`
