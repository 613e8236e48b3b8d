"""``lightning-stable export``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lightning_stable.commands._checkpoint import (
    CheckpointOptions,
    certify_checkpoint,
    guarantee_notes,
    known_inputs,
    marked,
)
from lightning_stable.options import Commands, Positive, add_command, between
from lightning_stable.printing import counted

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_stable.export import Exported
    from lightning_stable.stability import StabilityReport

# Steps of a window, each of which the program holds by itself.
_LONG = 100


@dataclass(frozen=True, kw_only=True)
class Options(CheckpointOptions):
    """The options of the command.

    Attributes:
        window: Inputs a recurrent layer sees (default: the window of a model that is windowed).
        tolerance: Take the smallest window certified to leave an error of at most T in the output of every recurrent
            module, in the Euclidean norm.
        format: Format of the file (default: torch-export for *.pt2, else onnx).
        streaming: Write a program of one step: the next input and the last K come in.
        example: A file that torch.save wrote of a batch of inputs (batch, time, ...), to trace and to check with
            (default: random ones, for classes of lightning_stable.models).
        bound: Return a bound beside every output, which holds whatever came before the window: auto does so for models
            that are certified as stable and have one recurrent layer or stack.
        out: *.onnx or *.pt2 (default: beside the checkpoint, with its name).
    """

    window: Positive | None = field(default=None, metadata={"metavar": "K", "one_of": "window"})
    tolerance: Annotated[float, between("(0, inf)")] | None = field(
        default=None, metadata={"metavar": "T", "one_of": "window"}
    )
    format: Literal["onnx", "torch-export"] | None = None
    streaming: bool = False
    bound: Literal["auto", "on", "off"] = "auto"
    example: Path | None = field(default=None, metadata={"metavar": "TENSOR"})
    out: Path | None = field(default=None, metadata={"metavar": "FILE"})


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "export",
        Options,
        run,
        help="write the model of a checkpoint as a feed-forward program of its last inputs, in ONNX or torch.export",
        description="Truncate the model of a checkpoint to a window and write it as a plain feed-forward program, for "
        "batches of every size and sequences of every length, or for one step of a stream. The file is run on random "
        "batches and compared with the truncated model before it takes its name. It carries window, certified rate "
        "and certified error bound.",
        examples=[
            "best.ckpt --window 25",
            "best.ckpt --tolerance 0.01 --streaming --out tagger.onnx",
            "best.ckpt --window 25 --format torch-export",
            "best.ckpt --window 25 --class-path my_project.models.Tagger --example inputs.pt",
        ],
    )


def run(options: Options) -> int:
    """Write the model of a checkpoint as a feed-forward program and print what was written.

    Raises:
        ValueError: If the checkpoint or the example cannot be read, no window is certified, or the model cannot be
            exported.
    """
    from rich.console import Console

    from lightning_stable.checkpoints import read_tensor
    from lightning_stable.export import export
    from lightning_stable.export.formats import FORMATS, checked_path
    from lightning_stable.stability.report import why_no_bound

    kind = options.format or ("torch-export" if options.out and options.out.suffix == ".pt2" else "onnx")
    if options.out is not None:
        checked_path(options.out, kind, "--out")  # before the checkpoint is read
    model, checkpoint = options.load()
    report = certify_checkpoint(model, checkpoint, options.input_bound)
    ending = (".streaming" if options.streaming else "") + FORMATS[kind].suffix
    window = options.window if options.tolerance is None else _certified_window(report, options.tolerance)
    console = Console()
    if window is not None and window > _LONG:
        console.print(
            f"The window has {window} inputs: writing and checking the program may take minutes. `lightning-stable "
            "profile` measures which shorter one is enough on your data; --window takes it.",
            soft_wrap=True,
        )
    exported = export(
        model,
        window,
        options.out or options.checkpoint.with_name(options.checkpoint.stem + ending),
        format=kind,
        streaming=options.streaming,
        example=None if options.example is None else read_tensor(options.example, "--example"),
        input_bound=known_inputs(model, checkpoint, options.input_bound),
        report=report,
        bound={"auto": None, "on": True, "off": False}[options.bound],
    )
    console.print(_table(exported))
    for name in exported.metadata.error_bound:
        if _certified_error(exported, name) is None:
            why = why_no_bound(report, exported.metadata.window, exported.output_norms.get(name, 1.0))
            if exported.metadata.bound is not None:
                why += " The output `bound` says how far each answer can be off on the inputs it has seen."
            console.print(why, markup=False, highlight=False, soft_wrap=True)
            break
    console.print(f"Written: {exported.path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _certified_window(report: StabilityReport, tolerance: float) -> int:
    from lightning_stable.stability.report import why_no_bound

    window = report.required_window(tolerance)
    if window is None:
        raise ValueError(
            f"`--tolerance` needs a certified window; --window takes any. Got none for {tolerance:g}: "
            f"{why_no_bound(report)}"
        )
    return window


def _certified_error(exported: Exported, name: str) -> float | None:
    """Return the certified error of a recurrent module; None if it is not below the size of its outputs."""
    error = exported.metadata.error_bound[name]
    return error if error is not None and error < exported.output_norms.get(name, math.inf) else None


def _table(exported: Exported) -> Table:
    from rich.table import Table

    from lightning_stable.export.verify import BATCH_SIZES
    from lightning_stable.stability.report import format_rate

    metadata, size = exported.metadata, exported.path.stat().st_size
    table = Table(
        title=f"{metadata.model} as a feed-forward program",
        show_header=False,
        caption=guarantee_notes({metadata.guarantee}),
    )
    table.add_row("form", f"{metadata.form}, {size / 1e6:.2f} MB")
    table.add_row("window", counted(metadata.window, "input"))
    stable = metadata.rate is not None and metadata.rate < 1
    rate = None if metadata.rate is None else format_rate(metadata.rate) + ("" if stable else ", not stable")
    table.add_row("certified rate", marked(rate, metadata.guarantee))
    for name in metadata.error_bound:
        error = _certified_error(exported, name)
        shown = marked(None if error is None else f"{error:.3g}", metadata.guarantee)
        table.add_row(f"certified error of {name or 'output'}", shown)
    if metadata.bound is not None:
        module, before = metadata.bound["module"] or "output", metadata.bound["inputs_before"]
        said = f"of {module}, after {'any inputs' if before is None else before}"
        table.add_row("bound at every step", marked(said, metadata.bound["guarantee"]))
    for role, tensors in (("takes", metadata.inputs), ("returns", metadata.outputs)):
        for name, tensor in tensors.items():
            table.add_row(role, f"{name}: {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})")
    sizes = ", ".join(map(str, BATCH_SIZES))
    table.add_row("checked", f"differs from the truncated model by {exported.difference:.1g}\n(batches of {sizes})")
    table.add_row("measured", f"differs from the recurrent model by {exported.recurrent_difference:.1g}")
    return table
