"""``lightning-stable certify``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from lightning_stable.commands._checkpoint import CheckpointOptions, certify_checkpoint, marked, unknown_inputs
from lightning_stable.options import Commands, add_command, between
from lightning_stable.printing import counted

if TYPE_CHECKING:
    from lightning_stable.stability import StabilityReport


@dataclass(frozen=True, kw_only=True)
class Options(CheckpointOptions):
    """The options of the command.

    Attributes:
        json: Print the report as JSON, with 'guarantee', 'stable' and 'reason'.
        tolerance: Also say how many inputs are certified to be enough for the output of every recurrent module, up to
            an error of T in the Euclidean norm.
        citation: Print the papers that the certificate rests on, as BibTeX, and nothing else.
    """

    json: bool = False
    tolerance: Annotated[float, between("(0, inf)")] | None = field(default=None, metadata={"metavar": "T"})
    citation: bool = False


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "certify",
        Options,
        run,
        help="certify the contraction rate of every recurrence of a checkpoint",
        description="Certify the model of a checkpoint in evaluation mode, in float64, from the weights as they are "
        "stored. Exit status: 0 stable; 1 not certified stable; 2 could not say, or an error.",
        examples=[
            "runs/copy/runs/gru/checkpoints/best.ckpt",
            "best.ckpt --input-bound 3        every |x| <= 3",
            "best.ckpt --input-bound active:8",
            "best.ckpt --class-path my_project.models.Tagger --set hidden_size=64 --json",
        ],
    )


def run(options: Options) -> int:
    """Print the report of a checkpoint; return 0 if it is stable, 1 if it is not certified.

    Raises:
        ValueError: If nothing can be said: the checkpoint cannot be read, or a recurrence cannot be bounded.
    """
    from rich.console import Console

    from lightning_stable.checkpoints import bounds_in_training

    model, checkpoint = options.load()
    report = certify_checkpoint(model, checkpoint, options.input_bound)
    stable, reason = verdict(report, bounds_in_training(checkpoint))
    if options.citation:
        sys.stdout.write(report.citation() + "\n")
        return 0 if stable else 1
    if options.json:
        sys.stdout.write(json.dumps(report.to_dict() | {"stable": stable, "reason": reason}, indent=1) + "\n")
    else:
        console = Console()
        if stable is not None:
            console.print(reason, markup=False, highlight=False, soft_wrap=True)
        console.print(report.table())
        if options.tolerance is not None and stable is not None:
            console.print(_window(report, options.tolerance), markup=False, highlight=False, soft_wrap=True)
    if stable is None:
        raise ValueError(reason)
    return 0 if stable else 1


def _window(report: StabilityReport, tolerance: float) -> str:
    from lightning_stable.stability.report import why_no_bound

    window = report.required_window(tolerance)
    if window is None:
        return why_no_bound(report)
    inputs = marked(counted(window, "input"), report.guarantee)
    return f"Certified window: after {inputs}, the past changes no output of a recurrence by more than {tolerance:g}."


def verdict(report: StabilityReport, in_training: dict[str, str]) -> tuple[bool | None, str]:
    """Return whether a model is stable, None if that cannot be said, and the reason.

    Args:
        report: The report of the model.
        in_training: Input bounds of the layers in training, in words; they are shown where none is known now.
    """
    from lightning_stable.stability.report import REMEDY, format_rate

    unknown = unknown_inputs(report)
    unstable = [layer for layer in report.layers if not layer.is_stable and layer.name not in unknown]
    if unstable:
        rates = ", ".join(f"{layer.name!r} has rate {format_rate(layer.rate)}" for layer in unstable)
        return False, f"Not certified stable: {rates}, which is not below 1. {REMEDY}"
    if unknown:
        unbounded = [layer for layer in report.layers if layer.name in unknown]
        names = ", ".join(f"{layer.name!r} ({layer.cell})" for layer in unbounded)
        bounds = sorted({in_training[layer.name] for layer in unbounded if layer.name in in_training})
        hint = f" (in training: {', '.join(map(repr, bounds))})" if bounds else ""
        return None, (
            f"`--input-bound` must bound the inputs of {names}{hint}, unless the checkpoint holds the ranges that a "
            "StabilityProjectionCallback recorded. Got neither, and so no finite rate."
        )
    holds_for = {
        "data": "for inputs in the range seen in training; --input-bound certifies it for others",
        "derived": "for all inputs the traced model lets through (derived); --input-bound declares them",
        "guaranteed": "for every admissible input",
    }
    return True, f"Stable: every step contracts by {format_rate(report.rate)} or less, {holds_for[report.guarantee]}."
