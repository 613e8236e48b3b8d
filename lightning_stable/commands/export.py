"""``lightning-stable export``."""

from __future__ import annotations

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

    kind = options.format or ("torch-export" if options.out and options.out.suffix == ".pt2" else "onnx")
    if options.out is not None:
        checked_path(options.out, kind, "--out")  # before the checkpoint is read
    model, checkpoint = options.load()
    report = certify_checkpoint(model, checkpoint, options.input_bound)
    ending = (".streaming" if options.streaming else "") + FORMATS[kind].suffix
    window = options.window if options.tolerance is None else _certified_window(report, options.tolerance)
    if window is not None and window > _LONG:
        Console().print(f"The window has {window} inputs: writing and checking the program may take minutes.")
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
    Console().print(_table(exported))
    Console().print(f"Written: {exported.path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _certified_window(report: StabilityReport, tolerance: float) -> int:
    from lightning_stable.stability.report import format_rate

    window = report.required_window(tolerance)
    if window is None:
        raise ValueError(
            "`--tolerance` needs a certified window: try --window, or --input-bound where the inputs are not known. "
            f"Got none for {tolerance:g}; the certified rate is {format_rate(report.rate)}."
        )
    return window


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
    table.add_row("window", f"{metadata.window} inputs")
    rate = None if metadata.rate is None else format_rate(metadata.rate)
    table.add_row("certified rate", marked(rate, metadata.guarantee))
    for name, bound in metadata.error_bound.items():
        error = None if bound is None else f"{bound:.3g}"
        table.add_row(f"certified error of {name or 'output'}", marked(error, metadata.guarantee))
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
