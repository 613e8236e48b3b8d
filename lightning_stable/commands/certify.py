"""``lightning-stable certify``."""

from __future__ import annotations

import argparse
import json
import math
import sys

from lightning.pytorch import LightningModule
from rich.console import Console

from lightning_stable.checkpoints import Checkpoint, bounds_in_training, load_model, read_checkpoint, recorded_inputs
from lightning_stable.commands.input_bound import parse_input_bound
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability import StabilityReport, certify
from lightning_stable.stability.report import format_rate


def run(options: argparse.Namespace) -> int:
    """Print the report of a checkpoint; return 0 if it is stable, 1 if not.

    Raises:
        ValueError: If nothing can be said: the checkpoint cannot be read, or a recurrence cannot be bounded.
    """
    checkpoint = read_checkpoint(options.checkpoint)
    model = load_model(checkpoint, options.class_path, dict(options.arguments))
    report = certify_checkpoint(model, checkpoint, options.input_bound)
    stable, reason = verdict(report, bounds_in_training(checkpoint))
    if options.json:
        sys.stdout.write(json.dumps(report.to_dict() | {"stable": stable, "reason": reason}, indent=1) + "\n")
    if stable is None:
        raise ValueError(reason)
    if not options.json:
        console = Console()
        console.print(report.table())
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    return 0 if stable else 1


def certify_checkpoint(model: LightningModule, checkpoint: Checkpoint, input_bound: str | None) -> StabilityReport:
    """Certify a model; where its inputs are not known otherwise, for the range a callback recorded in training.

    Args:
        model: The model, in evaluation mode.
        checkpoint: Where it comes from.
        input_bound: As it was given on the command line.

    Raises:
        ValueError: As :func:`~lightning_stable.certify`.
    """
    if input_bound is not None:
        return certify(model, input_bound=parse_input_bound(input_bound))
    report, recorded = certify(model), recorded_inputs(checkpoint)
    unbounded = {layer.name for layer in report.layers if not math.isfinite(layer.rate)}
    unknown = {r.module_name for r in find_recurrences(model) if r.name in unbounded}
    found = {name: recorded[name] for name in unknown & recorded.keys()}
    return certify(model, input_bound=found) if found else report


def verdict(report: StabilityReport, in_training: dict[str, str]) -> tuple[bool | None, str]:
    """Whether a model is stable, None if that cannot be said, and why.

    Args:
        report: Its report.
        in_training: Input bounds of its layers in training, in words: shown where none is known now.
    """
    unstable = [layer for layer in report.layers if 1 <= layer.rate < math.inf]
    if unstable:
        rates = ", ".join(f"{layer.name!r} has rate {format_rate(layer.rate)}" for layer in unstable)
        return False, f"Not certified stable: {rates}, which is not below 1."
    unbounded = [layer for layer in report.layers if not layer.rate < math.inf]
    if unbounded:
        names = ", ".join(f"{layer.name!r} ({layer.cell})" for layer in unbounded)
        known = sorted({in_training[layer.name] for layer in unbounded if layer.name in in_training})
        hint = f" (in training: {', '.join(map(repr, known))})" if known else ""
        return None, f"`--input-bound` must bound the inputs of {names}{hint}. Got no finite rate."
    stable = f"Stable: every step contracts by {format_rate(report.rate)} or less"
    if any(layer.guarantee == "data" for layer in report.layers):
        return True, f"{stable}, for inputs in the range seen in training; --input-bound certifies it for others."
    return True, f"{stable}, for every admissible input."
