"""``lightning-stable export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_stable.checkpoints import load_model, read_checkpoint, read_plain
from lightning_stable.commands.certify import certify_checkpoint
from lightning_stable.export import Exported, export
from lightning_stable.export.formats import FORMATS, checked_path
from lightning_stable.export.verify import BATCH_SIZES
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.report import format_rate


def run(options: argparse.Namespace) -> int:
    """Write the model of a checkpoint as a feed-forward program and print what was written.

    Raises:
        ValueError: If the checkpoint or the example cannot be read, no window is certified, or the model cannot be
            exported.
    """
    kind = options.format or ("torch-export" if options.out and options.out.suffix == ".pt2" else "onnx")
    if options.out is not None:
        checked_path(options.out, kind)  # before the checkpoint is read
    checkpoint = read_checkpoint(options.checkpoint)
    model = load_model(checkpoint, options.class_path, dict(options.arguments))
    report = certify_checkpoint(model, checkpoint, options.input_bound)
    ending = (".streaming" if options.streaming else "") + FORMATS[kind].suffix
    done = export(
        model,
        options.window if options.tolerance is None else _certified_window(report, options.tolerance),
        options.out or options.checkpoint.with_name(options.checkpoint.stem + ending),
        format=kind,
        streaming=options.streaming,
        example=None if options.example is None else _example(options.example),
        report=report,
    )
    Console().print(_table(done))
    Console().print(f"Written: {done.path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _certified_window(report: StabilityReport, tolerance: float) -> int:
    window = report.required_window(tolerance)
    if window is None:
        raise ValueError(
            "`--tolerance` needs a certified window: try --window, or --input-bound where the inputs are not known. "
            f"Got none for {tolerance:g}; the certified rate is {format_rate(report.rate)}."
        )
    return window


def _example(path: Path) -> Tensor:
    tensor = read_plain(path)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"`--example` must be the file of one tensor. Got {type(tensor).__name__} in {str(path)!r}.")
    return tensor


def _table(done: Exported) -> Table:
    metadata, size = done.metadata, done.path.stat().st_size
    table = Table(
        title=f"{metadata.model} as a feed-forward program",
        show_header=False,
        caption="* for inputs in the range of recorded ones only" if metadata.guarantee == "data" else None,
    )
    mark = "*" if metadata.guarantee == "data" else ""
    table.add_row("form", f"{metadata.form}, {size / 1e6:.2f} MB")
    table.add_row("window", f"{metadata.window} inputs")
    table.add_row("certified rate", "none" if metadata.rate is None else format_rate(metadata.rate) + mark)
    for name, bound in metadata.error_bound.items():
        table.add_row(f"certified error of {name or 'output'}", "none" if bound is None else f"{bound:.3g}{mark}")
    for role, tensors in (("takes", metadata.inputs), ("returns", metadata.outputs)):
        for name, tensor in tensors.items():
            table.add_row(role, f"{name}: {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})")
    sizes = ", ".join(map(str, BATCH_SIZES))
    table.add_row("checked", f"differs from the truncated model by {done.difference:.1g}\n(batches of {sizes})")
    table.add_row("measured", f"differs from the recurrent model by {done.recurrent_difference:.1g}")
    return table
