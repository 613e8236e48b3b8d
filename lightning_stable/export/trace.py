"""From a form to a program, and what tensors that takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lightning_stable.export.formats import Tensors
from lightning_stable.export.forms import BatchForm, StreamingForm
from lightning_stable.quiet import silent

Axes = tuple[dict[int, str], ...]
_BATCH = 3
_LONGEST_REASON = 300


def trace(
    form: BatchForm | StreamingForm, draw: Callable[[int, int], Tensor], length: int, fixed: int, *, batch_first: bool
) -> tuple[ExportedProgram, Axes, int | None]:
    """Return the program of a form for batches of every size and, if the model allows it, sequences of every length.

    Args:
        form: The form.
        draw: Function that makes inputs of a batch size and a length.
        length: Length of the inputs to trace with.
        fixed: The only length of a program that cannot have others.
        batch_first: Whether the batch is the first dimension of the inputs, or the second after time.

    Returns:
        The program, the names of the free dimensions of its inputs, and its only length or None.

    Raises:
        ValueError: If the model cannot be traced.
    """
    batch_dim, time_dim = int(not batch_first), int(batch_first)
    if isinstance(form, StreamingForm):
        axes: Axes = ({0: "batch"},) * 3
        return _export(form, (draw(_BATCH, 1).squeeze(time_dim), *form.start(_BATCH)), axes), axes, None
    axes = ({batch_dim: "batch", time_dim: "time"},)
    try:
        return _export(form, (draw(_BATCH, length),), axes), axes, None
    except ValueError:
        axes = ({batch_dim: "batch"},)
        return _export(form, (draw(_BATCH, fixed),), axes), axes, fixed


def _export(form: torch.nn.Module, inputs: Tensors, axes: Axes) -> ExportedProgram:
    sizes = {name: Dim(name) for named in axes for name in named.values()}
    dynamic: Any = tuple({dim: sizes[name] for dim, name in named.items()} for named in axes)
    try:
        with silent():
            return torch.export.export(form, inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # whatever the model's own code runs into
        reason = shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" ...")
        raise ValueError(f"The model must be one that torch.export can trace. Got {reason}") from error


def describe(program: ExportedProgram, axes: Axes, names: Sequence[Sequence[str]]) -> tuple[dict[str, Any], ...]:
    """Return shapes and dtypes of what a program takes and of what it returns, by name."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    inputs, outputs = ([values[str(name)] for name in part] for part in (signature.user_inputs, signature.user_outputs))
    free = {
        str(value.shape[dim]): name for value, named in zip(inputs, axes, strict=True) for dim, name in named.items()
    }

    def described(value: Tensor) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else free.get(str(size), str(size)) for size in value.shape]
        return {"shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}

    return tuple(
        {name: described(value) for name, value in zip(part, tensors, strict=False)}
        for part, tensors in zip(names, (inputs, outputs), strict=True)
    )
