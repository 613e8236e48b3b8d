"""The two formats: how a program is written to a file, and how the file is run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_stable import checks
from lightning_stable.export._onnx import converting, import_onnx
from lightning_stable.export.metadata import ARCHIVED, Metadata
from lightning_stable.files import check_folder

Tensors = tuple[Tensor, ...]
Runner = Callable[[Tensors], Tensors]


class Format(NamedTuple):
    """One of :data:`FORMATS`.

    Attributes:
        suffix: Suffix of its files.
        check: Function that raises ModuleNotFoundError where a package is missing.
        write: Function that writes a program with its metadata.
        open: Function that returns what runs a file.
    """

    suffix: str
    check: Callable[[], Any]
    write: Callable[[ExportedProgram, Path, Metadata], None]
    open: Callable[[Path], Runner]


def _write_onnx(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    inputs, outputs = list(metadata.inputs), list(metadata.outputs)
    with converting():
        written = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    assert written is not None
    written.model.metadata_props.update(metadata.to_strings())
    written.save(path)


def _open_onnx(path: Path) -> Runner:
    with converting():
        session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Tensors) -> Tensors:
        arrays = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        return tuple(torch.from_numpy(array) for array in arrays)

    return run


def _write_torch(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    torch.export.save(program, path, extra_files={ARCHIVED: json.dumps(metadata.to_dict(), indent=1)})


def _open_torch(path: Path) -> Runner:
    return runner_of(torch.export.load(path))


def runner_of(program: ExportedProgram) -> Runner:
    """Return a function that runs a program."""
    module = program.module()

    def run(inputs: Tensors) -> Tensors:
        answer = module(*inputs)
        return answer if isinstance(answer, tuple) else (answer,)

    return run


FORMATS = {
    "onnx": Format(".onnx", import_onnx, _write_onnx, _open_onnx),
    "torch-export": Format(".pt2", lambda: None, _write_torch, _open_torch),
}


def checked_path(path: str | Path, format: str, name: str = "path") -> Path:
    """Return the path of a file to write; the name is that of the argument or the option.

    Raises:
        TypeError: If the format is no string.
        ValueError: If there is no such format, or no file of it can be written there.
    """
    format = checks.choice("format", format, list(FORMATS))
    path = checks.path(name, path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device"
        raise ValueError(f"`{name}` must be that of a file. Got {str(path)!r}, {what}.")
    if path.suffix != FORMATS[format].suffix:
        raise ValueError(f"`{name}` must end in {FORMATS[format].suffix!r} for {format!r}. Got {str(path)!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"`{name}` must be in a folder that exists. Got {str(path)!r}.")
    try:
        check_folder(path.parent)
    except ValueError as error:
        raise ValueError(f"`{name}` must be in a folder that may be written to. Got {str(path)!r}.") from error
    return path
