"""The ``lightning-stable`` command."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from lightning_stable.commands.capacity import add_capacity
from lightning_stable.commands.options import add_certify, add_export, add_profile, positive
from lightning_stable.version import __version__

CELLS = ("rnn", "irnn", "ugrnn", "gru", "lstm", "intersection")
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
TASKS = ("jsb", "nottingham", "atis", "wikitext2", "ptb-char", "ptb-word", "copy", "adding")


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand each."""
    parser = argparse.ArgumentParser(
        prog="lightning-stable",
        description="Provably stable recurrent networks for PyTorch Lightning.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable demo --out runs/demo\n"
        "  lightning-stable reproduce copy --out runs/copy\n"
        "  lightning-stable fit --config examples/fit.yaml\n"
        "  lightning-stable certify runs/copy/runs/gru/checkpoints/best.ckpt",
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
    add("--epochs", type=positive, default=6, help="epochs per model (default: %(default)s)")
    add("--cell", choices=CELLS, default="lstm", help="recurrent cell (default: %(default)s)")
    add("--hidden-size", type=positive, default=128, help="recurrent units (default: %(default)s)")
    add("--rate", type=float, default=0.99, help="largest certified rate (default: %(default)s)")
    add("--gate-bound", type=float, help="largest value of the forget or update gate (default: rate squared)")
    add("--window", type=positive, default=10, help="inputs the twins see (default: %(default)s)")
    add("--distance-steps", type=positive, default=80, help="steps of the last comparison (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of both trainings (default: %(default)s)")
    add("--limit-batches", type=positive, help="batches per epoch, for a quick look (default: all)")
    demo.set_defaults(run=_demo)
    _add_reproduce(commands)
    add_capacity(commands)
    add_certify(commands)
    add_profile(commands)
    add_export(commands)
    for name in LIGHTNING_COMMANDS:  # for --help; they are parsed by LightningCLI
        commands.add_parser(name, help=f"{name} with LightningCLI: {name} --config FILE", add_help=False)
    return parser


def _add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="train the pairs of one of the paper's tasks and compare them with published figures",
        description="Train every cell unconstrained and stable, recurrent and truncated, and convolutional networks, "
        "on one of the paper's tasks; print a table beside published figures; write results.json, results.csv, "
        "results.png and TensorBoard runs. Every run is an ordinary LightningCLI configuration under OUT/runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable reproduce jsb --data-dir data/jsb_chorales\n"
        "  lightning-stable reproduce copy --only gru gru-stable tcn\n"
        "  lightning-stable reproduce jsb --out runs/jsb --resume",
    )
    add = reproduce.add_argument
    add("task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    add("--out", type=Path, help="folder for everything written (default: runs/TASK)")
    add("--data-dir", type=Path, help="folder with the data set (default: downloaded, where it is public)")
    add("--budget", choices=("small", "paper"), default="small", help="how much to train (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of every run (default: %(default)s)")
    add("--baselines", action="store_true", help="train all convolutional networks, not only the usual one")
    add("--resume", action="store_true", help="keep the runs that are finished, train the others")
    add("--jobs", type=positive, help="runs at a time (default: one per core; one on a GPU)")
    add("--only", nargs="+", metavar="RUN", help="train these runs only, by name: lstm-stable-k10")
    reproduce.set_defaults(run=_reproduce)


def _demo(options: argparse.Namespace) -> int:
    from lightning_stable.experiments import demo

    chosen = {field.name: getattr(options, field.name) for field in fields(demo.Options)}
    return demo.run_demo(options.out, demo.Options(**chosen))


def _reproduce(options: argparse.Namespace) -> int:
    from lightning_stable.experiments import reproduce

    chosen = {field.name: getattr(options, field.name) for field in fields(reproduce.Options)}
    chosen["only"] = None if options.only is None else tuple(options.only)
    task = reproduce.load_task(options.task)
    return reproduce.reproduce(task, options.out or Path("runs") / task.name, reproduce.Options(**chosen))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is returned. Errors take one line unless ``--traceback`` is given."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    plain = [argument for argument in given if argument != "--traceback"]  # which may stand anywhere
    if plain and plain[0] in LIGHTNING_COMMANDS:  # LightningCLI parses them
        options = argparse.Namespace(run=_lightning, arguments=plain)
    else:
        options = build_parser().parse_args(plain)
    run: Callable[[argparse.Namespace], int] = options.run  # imports late: --help should not have to wait for torch
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if plain != given:
            traceback.print_exc()
        else:
            message = " ".join(str(error).split())
            sys.stderr.write(f"lightning-stable: {type(error).__name__}: {message}\n")
        return 2  # with a traceback too: 1 is an answer of `certify`


def _lightning(options: argparse.Namespace) -> int:
    from lightning_stable.commands import lightning

    return lightning.run(options.arguments)
