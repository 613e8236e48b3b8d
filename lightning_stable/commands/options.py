"""What the commands are given; nothing here waits for torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_certify(commands: Commands) -> None:
    """Add ``certify``."""
    parser = commands.add_parser(
        "certify",
        help="certify the contraction rate of every recurrence of a checkpoint",
        description="Certify the model of a checkpoint in evaluation mode, in float64, from the weights as they are "
        "stored. Exit status: 0 stable; 1 not certified stable; 2 could not say, or an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable certify runs/copy/runs/gru/checkpoints/best.ckpt\n"
        "  lightning-stable certify best.ckpt --input-bound 3        every |x| <= 3\n"
        "  lightning-stable certify best.ckpt --input-bound active:8\n"
        "  lightning-stable certify best.ckpt --class-path my_project.models.Tagger --set hidden_size=64 --json",
    )
    _add_checkpoint(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, with 'stable' and 'reason'")
    parser.set_defaults(run=_certify)


def add_profile(commands: Commands) -> None:
    """Add ``profile``."""
    parser = commands.add_parser(
        "profile",
        usage="%(prog)s CKPT --data CONFIG_OR_TENSOR [CONFIG_OR_TENSOR ...] [options]",
        help="measure how many inputs the recurrences of a checkpoint need, beside what is certified",
        description="Run the model of a checkpoint on data and compare every recurrent module with its windowed forms, "
        "which see the last inputs only. Prints the measured and the certified window; writes a plot per module and "
        "profile.csv.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable profile best.ckpt --data runs/copy/runs/gru/config.yaml --tolerance 0.01\n"
        "  lightning-stable profile best.ckpt --data inputs.pt --max-window 100 --out runs/profile\n"
        "  lightning-stable profile best.ckpt --data inputs.pt --class-path my_project.models.Tagger",
    )
    _add_checkpoint(parser)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="CONFIG_OR_TENSOR",
        help="a LightningCLI configuration (.yaml) whose 'data' section gives validation batches, or a file that "
        "torch.save wrote of a tensor, which the model's forward takes as one batch; several are joined",
    )
    add(
        "--batches",
        type=positive,
        default=4,
        metavar="N",
        help="validation batches of a configuration (default: %(default)s)",
    )
    add("--max-window", type=positive, default=32, metavar="K", help="longest window measured (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        metavar="T",
        help="error of a module's output, in the Euclidean norm, that a window may leave (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("profile"),
        metavar="DIR",
        help="folder for plots and table (default: %(default)s)",
    )
    parser.set_defaults(run=_profile)


def add_export(commands: Commands) -> None:
    """Add ``export``."""
    parser = commands.add_parser(
        "export",
        help="write the model of a checkpoint as a feed-forward program of its last inputs, in ONNX or torch.export",
        description="Truncate the model of a checkpoint to a window and write it as a plain feed-forward program, for "
        "batches of every size and sequences of every length, or for one step of a stream. The file is run on random "
        "batches and compared with the truncated model before it takes its name. It carries window, certified rate "
        "and certified error bound.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  lightning-stable export best.ckpt --window 25\n"
        "  lightning-stable export best.ckpt --tolerance 0.01 --streaming --out tagger.onnx\n"
        "  lightning-stable export best.ckpt --window 25 --format torch-export\n"
        "  lightning-stable export best.ckpt --window 25 --class-path my_project.models.Tagger --example inputs.pt",
    )
    _add_checkpoint(parser)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--window",
        type=positive,
        metavar="K",
        help="inputs a recurrent layer sees (default: the window of a model that is windowed)",
    )
    chosen.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="take the smallest window certified to leave an error of at most T in the output of every recurrent "
        "module, in the Euclidean norm",
    )
    add = parser.add_argument
    add("--format", choices=("onnx", "torch-export"), help="of the file (default: torch-export for *.pt2, else onnx)")
    add("--streaming", action="store_true", help="a program of one step: the next input and the last K come in")
    add(
        "--example",
        type=Path,
        metavar="TENSOR",
        help="a file that torch.save wrote of a batch of inputs (batch, time, ...), to trace and to check with "
        "(default: random ones, for classes of lightning_stable.models)",
    )
    add("--out", type=Path, metavar="FILE", help="*.onnx or *.pt2 (default: beside the checkpoint, with its name)")
    parser.set_defaults(run=_export)


def positive(text: str) -> int:
    """A positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Got {text}")
    return value


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="checkpoint that a Trainer saved; no code in it is run")
    add(
        "--input-bound",
        metavar="VALUE",
        help="what is known about the inputs of the recurrences: a number B (every |x| <= B), active:COUNT (at most "
        "COUNT entries are not 0, each in [0, 1]), l2:RADIUS or box:LOW:HIGH (default: what follows from the model "
        "itself, then the range of the inputs seen)",
    )
    add(
        "--class-path",
        metavar="PKG.MODULE.CLASS",
        help="the LightningModule (default: the class the checkpoint names, if it is one of lightning_stable.models)",
    )
    add(
        "--set",
        dest="arguments",
        type=_assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the class that the checkpoint does not hold; may be repeated",
    )
    add("--traceback", action="store_true", default=argparse.SUPPRESS, help="show the whole traceback of an error")


def _assignment(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must have the form NAME=VALUE. Got {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def _certify(options: argparse.Namespace) -> int:
    from lightning_stable.commands import certify

    return certify.run(options)


def _profile(options: argparse.Namespace) -> int:
    from lightning_stable.commands import profile

    return profile.run(options)


def _export(options: argparse.Namespace) -> int:
    from lightning_stable.commands import export

    return export.run(options)
