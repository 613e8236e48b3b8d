"""The checkpoint of a command: its options, its model, and the input set as the command line writes it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lightning_stable.checkpoints import Checkpoint
    from lightning_stable.stability import InputSet, StabilityReport
    from lightning_stable.stability.inputs.sets import InputBound


# What a guarantee below "guaranteed" leaves open, below a table that marks figures with it.
_NOTES = {
    "derived": "derived: for all inputs the traced model lets through",
    "data": "data: for inputs in the range of observed ones only",
}
# The words of the library for layers without an input set name its arguments, these name the options.
_TWO_WAYS = (
    "Its rate depends on its inputs, and no set of them is known. Pass `--input-bound`, or take a checkpoint in which "
    "a StabilityProjectionCallback recorded the ranges of the inputs; this one holds none for it."
)


def marked(figure: str | None, guarantee: str) -> str:
    """Return a certified figure with a guarantee that is worth less than "guaranteed"; ``"none"`` if there is none."""
    if figure is None:
        return "none"
    return f"{figure} ({guarantee})" if guarantee in _NOTES else figure


def guarantee_notes(guarantees: Collection[str]) -> str | None:
    """Return what the marks of a table mean, a line each; None if there are none."""
    return "\n".join(note for guarantee, note in _NOTES.items() if guarantee in guarantees) or None


def assignment(text: str) -> tuple[str, Any]:
    """Parse ``NAME=VALUE``; the value is JSON, True, False, None or a string."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must have the form NAME=VALUE. Got {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The options of all commands that read a checkpoint.

    Attributes:
        checkpoint: Checkpoint that a Trainer saved; no code in it is run, unless --trust says so.
        input_bound: What is known about the inputs of the recurrences: a number B (every |x| <= B), active:COUNT (at
            most COUNT entries are not 0, each in [0, 1]), l2:RADIUS or box:LOW:HIGH (default: what follows from the
            model itself, then what the checkpoint declares, then the range of the inputs seen).
        class_path: The LightningModule, of lightning.pytorch or pytorch_lightning (default: the class the checkpoint
            names, if it is one of lightning_stable.models).
        arguments: Argument of the class that the checkpoint does not hold; may be repeated.
        trust: Read everything in the checkpoint, objects of any class too. This runs code that the file's author put
            there: use it for files of people you trust only.
    """

    checkpoint: Path = field(metadata={"metavar": "CKPT"})
    input_bound: str | None = field(default=None, metadata={"metavar": "VALUE"})
    class_path: str | None = field(default=None, metadata={"metavar": "PKG.MODULE.CLASS"})
    arguments: tuple[tuple[str, Any], ...] = field(
        default=(),
        metadata={"flag": "--set", "action": "append", "nargs": None, "type": assignment, "metavar": "NAME=VALUE"},
    )
    trust: bool = False

    def load(self) -> tuple[LightningModule, Checkpoint]:
        """Return the model, in evaluation mode, and the checkpoint it comes from.

        Raises:
            ValueError: If the checkpoint cannot be read, or does not fit the class.
        """
        from lightning_stable.checkpoints import load_model, read_checkpoint

        checkpoint = read_checkpoint(self.checkpoint, trust=self.trust)
        return load_model(checkpoint, self.class_path, dict(self.arguments)), checkpoint


def certify_checkpoint(model: LightningModule, checkpoint: Checkpoint, input_bound: str | None) -> StabilityReport:
    """Certify a model; where its inputs are unknown, for those the checkpoint declares or a callback saw in training.

    Args:
        model: The model, in evaluation mode.
        checkpoint: The checkpoint it comes from.
        input_bound: The input set as the command line writes it; None takes what follows from the model.

    Returns:
        The report; layers whose inputs stay unknown say in ``reason`` which options help.

    Raises:
        ValueError: As :func:`~lightning_stable.certify`.
    """
    from lightning_stable import certify
    from lightning_stable.stability.certify import NO_INPUT_SET

    if input_bound is not None:
        return certify(model, input_bound=parse_input_bound(input_bound))
    report = certify(model, input_bound=known_inputs(model, checkpoint, None))
    return report.revoked(
        {
            layer.name: (layer.reason or "").replace(NO_INPUT_SET, _TWO_WAYS)
            for layer in report.layers
            if layer.name in unknown_inputs(report)
        }
    )


def known_inputs(model: LightningModule, checkpoint: Checkpoint, input_bound: str | None) -> InputBound:
    """Return what is known about inputs as :func:`certify_checkpoint` uses it; None is what follows from the model."""
    from lightning_stable import certify
    from lightning_stable.checkpoints import declared_inputs, recorded_inputs
    from lightning_stable.recurrence import find_recurrences

    if input_bound is not None:
        return parse_input_bound(input_bound)
    report, declared = certify(model), declared_inputs(checkpoint)
    unknown = {r.module_name for r in find_recurrences(model) if r.name in unknown_inputs(report)}
    known = recorded_inputs(checkpoint) if declared is None else dict.fromkeys(unknown, declared)
    return {name: known[name] for name in unknown & known.keys()} or None


def unknown_inputs(report: StabilityReport) -> set[str]:
    """Return the names of the layers that have no certificate because no set of their inputs is known."""
    from lightning_stable.stability.certify import NO_INPUT_SET

    return {layer.name for layer in report.layers if (layer.reason or "").endswith((NO_INPUT_SET, _TWO_WAYS))}


def parse_input_bound(text: str) -> InputSet:
    """Return the input set that a number, ``active:COUNT``, ``l2:RADIUS`` or ``box:LOW:HIGH`` stands for.

    Raises:
        ValueError: If the text is none of them.
    """
    from lightning_stable.stability import ActiveEntries, Box, L2Ball
    from lightning_stable.stability.inputs.sets import SupNorm

    kinds: dict[str, Callable[..., InputSet]] = {
        "active": lambda count: ActiveEntries(int(count)),
        "l2": lambda radius: L2Ball(float(radius)),
        "box": lambda low, high: Box(float(low), float(high)),
    }
    kind, *numbers = text.split(":")
    try:
        return kinds[kind](*numbers) if numbers else SupNorm(float(kind))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "`--input-bound` must be a finite number of at least 0, active:COUNT, l2:RADIUS, or box:LOW:HIGH with "
            f"LOW <= HIGH. Got {text!r}."
        ) from error
