"""LightningModules from checkpoints, whose contents are never run."""

from __future__ import annotations

import inspect
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_stable import models
from lightning_stable.stability import InputSet
from lightning_stable.stability.inputs.sets import Recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

Checkpoint = dict[str, Any]
_LONGEST_REASON = 300
_SHARDED = ".metadata"  # torch.distributed.checkpoint's file


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU with ``weights_only=True``: tensors and plain values, no code.

    Raises:
        ValueError: If there is no such file, it is damaged or no checkpoint of Lightning's, or it holds anything else.
    """
    if (path / _SHARDED).is_file():
        raise ValueError(
            f"The checkpoint must be one file. Got the folder of a sharded one, {str(path)!r}; make a file of it with "
            f"`python -m lightning.fabric.utilities.consolidate_checkpoint {path}`, or train with "
            "ModelParallelStrategy(save_distributed_checkpoint=False)."
        )
    checkpoint = _read_plain(path, "The checkpoint")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"The checkpoint must be one that a Trainer saved. Got no 'state_dict' in {str(path)!r}.")
    return checkpoint


def _read_plain(path: Path, who: str) -> Any:
    """Read what ``torch.save`` wrote onto the CPU, if it is undamaged and consists of tensors and plain values only."""
    if not path.is_file():
        raise ValueError(f"{who} must exist. Got {str(path)!r}, {'a folder' if path.is_dir() else 'not found'}.")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where the damage lies
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{who} must hold tensors and plain values only, as nothing in it is run. "
                f"Got {refused[1]} in {str(path)!r}."
            ) from error
        raise ValueError(
            f"{who} must be one that torch.save wrote, and whole. Got {str(path)!r} ({type(error).__name__})."
        ) from error


def _check_sums(path: Path) -> None:
    """Compare every member of a zip archive with its checksum, as torch.load does not.

    Files from before torch 1.6 are no archives and have no checksums.

    Raises:
        zipfile.BadZipFile: If a member is not what was written.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # what torch.load looks at
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")


def read_tensor(path: Path, option: str) -> Tensor:
    """Read the file of one tensor.

    Args:
        path: The file, which ``torch.save`` wrote.
        option: The option that names the file, for messages.

    Raises:
        ValueError: If there is no such file, it is damaged, or holds anything else.
    """
    tensor = _read_plain(path, f"The file of `{option}`")
    if not isinstance(tensor, Tensor):
        raise ValueError(f"`{option}` must be the file of one tensor. Got {type(tensor).__name__} in {str(path)!r}.")
    return tensor


def load_model(
    checkpoint: Checkpoint, class_path: str | None = None, arguments: Mapping[str, Any] | None = None
) -> LightningModule:
    """Return the model of a checkpoint, with exactly the weights it holds, in evaluation mode.

    Args:
        checkpoint: The checkpoint; its hyperparameters are the arguments of the class.
        class_path: The import path of the class. None takes the one a checkpoint of LightningCLI names, if that is a
            class of :mod:`lightning_stable.models`: nothing else is imported because a checkpoint says so.
        arguments: Arguments of the class that the checkpoint lacks, or that replace those it holds.

    Raises:
        ValueError: If the class is unknown, cannot be imported or cannot be made with these arguments, or if the
            weights do not fit it.
    """
    hyperparameters = dict(checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    hyperparameters.pop("_instantiator", None)
    named = hyperparameters.pop("_class_path", None)
    model_class = _own_class(named) if class_path is None else import_class(class_path)
    keywords = _arguments(model_class, hyperparameters, checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_NAME))
    keywords |= arguments or {}
    try:
        model = model_class(**keywords)
    except Exception as error:
        raise ValueError(
            f"`--set NAME=VALUE` must complete the arguments of {model_class.__name__}. "
            f"Got {sorted(keywords)}, and {type(error).__name__}: {error}"
        ) from error
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    try:
        # Copying would round the weights to the precision in which the class happens to be made.
        model.load_state_dict(checkpoint["state_dict"], strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"The weights must fit {model_class.__name__} as the checkpoint's arguments and --set make it. "
            f"Got {shorten(str(error), _LONGEST_REASON, placeholder=' ...')}"
        ) from error
    return model.eval()


def recorded_inputs(checkpoint: Checkpoint) -> dict[str, InputSet]:
    """Return the input ranges that a StabilityProjectionCallback recorded in training, by recurrent module."""
    return {
        name: Recorded(-seen[0], seen[1])
        for state in _projection_states(checkpoint)
        for name, seen in state["input_ranges"].items()
    }


def bounds_in_training(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the input sets for which a StabilityProjectionCallback certified layers, in words, by layer."""
    return {
        layer["name"]: layer["input_bound"]
        for state in _projection_states(checkpoint)
        for layer in (state["report"] or {"layers": ()})["layers"]
        if layer["input_bound"]
    }


def import_class(path: str) -> type[LightningModule]:
    """Return the LightningModule of an import path; the working directory is searched too.

    Raises:
        ValueError: If it cannot be imported or is no LightningModule.
    """
    module, _, name = path.rpartition(".")
    try:
        with search_here():
            imported = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`--class-path` must be a class that can be imported, as in package.module.Class. Got {path!r}: {error}."
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, LightningModule)):
        raise ValueError(f"`--class-path` must be a subclass of lightning.pytorch.LightningModule. Got {path!r}.")
    return imported


@contextmanager
def search_here() -> Iterator[None]:
    """Let imports inside the block find modules of the working directory, after the installed ones."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _own_class(named: Any) -> type[LightningModule]:
    classes = [getattr(models, name) for name in models.__all__]
    own = [model for model in classes if isinstance(model, type) and issubclass(model, LightningModule)]
    by_path = {f"{package}.{model.__name__}": model for model in own for package in (models.__name__, model.__module__)}
    if named in by_path:
        return by_path[named]
    raise ValueError(
        "`--class-path PACKAGE.MODULE.CLASS` must name the class of the model, unless the checkpoint names one of "
        f"{models.__name__}. Got a checkpoint that names {'none' if named is None else repr(named)}."
    )


def _arguments(model_class: type[LightningModule], hyperparameters: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Return the hyperparameters as arguments: each that the class takes, or all in the one they were saved from."""
    parameters = inspect.signature(model_class).parameters
    if name is not None and name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
        return {name: AttributeDict(hyperparameters)}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return hyperparameters
    return {key: value for key, value in hyperparameters.items() if key in parameters}


def _projection_states(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    for state in (checkpoint.get("callbacks") or {}).values():
        if isinstance(state, dict) and {"report", "constraint", "input_ranges"} <= state.keys():
            yield state
