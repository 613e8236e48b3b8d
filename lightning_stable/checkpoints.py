"""LightningModules from checkpoints, whose contents are never run."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_stable import checks, models, stability
from lightning_stable.class_paths import obstacle_to_import, recorded_class_path
from lightning_stable.inert import load_inert, unread_in
from lightning_stable.stability import ActiveEntries, Box, InputSet, L2Ball, SupNorm
from lightning_stable.stability.inputs.sets import Recorded
from lightning_stable.trainers import classes

if TYPE_CHECKING:
    from collections.abc import Iterator

Checkpoint = dict[str, Any]
_LONGEST_REASON = 300
TRUST = "If you trust the file's author, `--trust` (in Python `trust=True`) reads all of it and runs their code."
_DECLARED = "lightning_stable_inputs"
_SHARDED = ".metadata"  # torch.distributed.checkpoint's file


def read_checkpoint(path: str | Path, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint onto the CPU without running anything in it.

    Tensors and plain values are read. Whatever else it holds, such as an object among the hyperparameters, becomes an
    ``lightning_stable.inert.Unread``; weights must be read, and so must what a model is made with.

    Args:
        path: The checkpoint.
        trust: Whether to read those objects too. **This runs whatever code the file's author put into it.**

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If there is no such file, it is damaged or no checkpoint of Lightning's, or its weights are no
            tensors.
    """
    path, who = checks.path("path", path), "The checkpoint"
    trust = checks.boolean("trust", trust)
    if (path / _SHARDED).is_file():
        raise ValueError(
            f"The checkpoint must be one file. Got the folder of a sharded one, {str(path)!r}; make a file of it with "
            f"`python -m lightning.fabric.utilities.consolidate_checkpoint {path}`, or train with "
            "ModelParallelStrategy(save_distributed_checkpoint=False)."
        )
    checkpoint = _whole(path, who, _with_code) if trust else _whole(path, who, _without_code, TRUST)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"The checkpoint must be one that a Trainer saved. Got no 'state_dict' in {str(path)!r}.")
    _check_entries(checkpoint, path)
    if unread := unread_in(checkpoint["state_dict"]):
        raise ValueError(f"The weights must be tensors and plain values. Got {unread[0]} in {str(path)!r}. {TRUST}")
    return checkpoint


def _check_entries(checkpoint: Checkpoint, path: Path) -> None:
    """Check the kinds of the entries that are read here; what was left unread is told where it is needed."""
    kinds = {
        "callbacks": Mapping,
        LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: Mapping,
        LightningModule.CHECKPOINT_HYPER_PARAMS_NAME: str,
    }
    wrong = [
        f"{type(value).__name__} as {name!r}"
        for name, kind in kinds.items()
        if not isinstance(value := checkpoint.get(name), (kind, type(None))) and not unread_in(value)
    ]
    wrong += [f"the name {key!r} in 'state_dict'" for key in checkpoint["state_dict"] if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"The checkpoint must be one that a Trainer saved. Got {wrong[0]} in {str(path)!r}.")


def _without_code(path: Path) -> Any:
    try:
        return _load_plain(path)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):  # the format from before torch 1.6
            raise
        return load_inert(path)


def _with_code(path: Path) -> Any:
    try:
        with search_here():
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise _MissingClassError(str(error)) from error


class _MissingClassError(Exception):
    """An object's class is not there, which says nothing about the file."""


def _load_plain(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _whole(path: Path, who: str, load: Callable[[Path], Any], way_out: str = "") -> Any:
    """Return what was loaded from a file, if the file is undamaged; a way out is for files that hold code."""
    if not path.is_file():
        raise ValueError(f"{who} must exist. Got {str(path)!r}, {'a folder' if path.is_dir() else 'not found'}.")
    try:
        _check_sums(path)
        return load(path)
    except _MissingClassError as error:
        raise ValueError(
            f"The classes of all objects in {str(path)!r} must be importable under the names they were saved with, or "
            f"be left unread, without `--trust`. Got {error}."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where the damage lies
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{who} must hold tensors and plain values only, as nothing in it is run. "
                f"Got {refused[1]} in {str(path)!r}. {way_out}".rstrip()
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
            # torch.save compresses nothing, and a small file could unpack to more than there is memory.
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise zipfile.BadZipFile(f"{packed[0]} is compressed")
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
    tensor = _whole(path, f"The file of `{option}`", _load_plain)
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
    hyperparameters = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    lost = unread_in(hyperparameters)
    hyperparameters = dict(hyperparameters) if isinstance(hyperparameters, Mapping) else {}
    hyperparameters.pop("_instantiator", None)
    named = hyperparameters.pop("_class_path", None)
    named = recorded_class_path(checkpoint) if named is None else named
    model_class = _own_class(named) if class_path is None else import_class(class_path)
    keywords = _arguments(model_class, hyperparameters, checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_NAME))
    keywords |= arguments or {}
    for key, value in keywords.items():
        if unread := unread_in(value):
            raise ValueError(
                f"The arguments of {model_class.__name__} must be plain values, as nothing in a checkpoint is run. "
                f"Got {unread[0]} in `{key}`; pass another with `--set {key}=VALUE`. {TRUST}"
            )
    try:
        model = model_class(**keywords)
    except Exception as error:
        raise ValueError(
            f"`--set NAME=VALUE` must complete the arguments of {model_class.__name__}. "
            f"Got {sorted(keywords)}, and {type(error).__name__}: {error}" + (f" {TRUST}" if lost else "")
        ) from error
    model.configure_model()
    try:
        model.on_load_checkpoint(checkpoint)
    except Exception as error:
        if unread := unread_in(checkpoint):
            raise ValueError(
                f"`on_load_checkpoint` of {model_class.__name__} must do without what was not read, {unread}. "
                f"Got {type(error).__name__}: {error}. {TRUST}"
            ) from error
        raise
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
    """Return the input ranges that a StabilityProjectionCallback recorded in training, by recurrent module.

    Example:
        >>> certify(model, input_bound=recorded_inputs(read_checkpoint("best.ckpt")))
    """
    return {
        name: Recorded(-seen[0], seen[1])
        for state in _projection_states(checkpoint)
        for name, seen in state["input_ranges"].items()
    }


def declare_inputs(checkpoint: Checkpoint, declared: Mapping[str, Any]) -> None:
    """Let a checkpoint say for which inputs its model is meant.

    Args:
        checkpoint: The checkpoint.
        declared: A set of :mod:`lightning_stable.stability` as a configuration writes it, ``class_path`` and
            ``init_args``.
    """
    checkpoint[_DECLARED] = dict(declared)


def declared_inputs(checkpoint: Checkpoint) -> InputSet | None:
    """Return the inputs that :func:`declare_inputs` kept; None if there are none. No other class is made.

    Raises:
        ValueError: If the checkpoint has something else in their place.
    """
    declared = checkpoint.get(_DECLARED)
    if declared is None:
        return None
    sets = {f"{stability.__name__}.{kind.__name__}": kind for kind in (ActiveEntries, Box, L2Ball, SupNorm)}
    try:
        made: InputSet = sets[declared["class_path"]](**declared.get("init_args", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The input set in a checkpoint must be one of {', '.join(sets)}, with its arguments. "
            f"Got {checks.shown(declared)}."
        ) from error
    return made


def recorded_reports(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the certificates that StabilityProjectionCallbacks recorded, as :meth:`StabilityReport.to_dict`."""
    return [state["report"] for state in _projection_states(checkpoint) if state["report"] is not None]


def bounds_in_training(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the input sets for which a StabilityProjectionCallback certified layers, in words, by layer."""
    return {
        layer["name"]: layer["input_bound"]
        for report in recorded_reports(checkpoint)
        for layer in report["layers"]
        if layer["input_bound"]
    }


def import_class(path: str) -> type[LightningModule]:
    """Return the LightningModule of an import path; the working directory is searched too.

    It may be one of ``lightning.pytorch`` or of ``pytorch_lightning``.

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
    if not (isinstance(imported, type) and issubclass(imported, classes("", "LightningModule"))):
        instead = ""
        if isinstance(imported, type) and issubclass(imported, nn.Module):
            instead = (
                ", a plain nn.Module. Name the LightningModule that holds it: its weights are what a Trainer saves. "
                "Without one, make the module in Python and call lightning_stable.certify on it"
            )
        raise ValueError(
            "`--class-path` must be a subclass of LightningModule, of lightning.pytorch or pytorch_lightning. "
            f"Got {path!r}{instead}."
        )
    found: type[LightningModule] = imported
    return found


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
    if isinstance(named, str) and named in by_path:
        return by_path[named]
    got = f"Got a checkpoint that names {'none' if named is None else repr(named)}"
    if isinstance(named, str):
        reason = obstacle_to_import(named)
        got += f". If that is its class, add: --class-path {named}" if reason is None else f", {reason}."
    raise ValueError(
        "`--class-path PACKAGE.MODULE.CLASS` must name the class of the model, unless the checkpoint names one of "
        f"{models.__name__}. {got}"
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
            if not (_is_report(state["report"]) and _is_ranges(state["input_ranges"])):
                raise ValueError(
                    "The state of a StabilityProjectionCallback in a checkpoint must be as the callback saved it. "
                    f"Got {checks.shown(state)}."
                )
            yield state


def _is_report(value: Any) -> bool:
    layers = value.get("layers") if isinstance(value, dict) else ()
    needed = {"name", "input_bound"}
    return value is None or (
        isinstance(layers, list) and all(isinstance(layer, dict) and needed <= layer.keys() for layer in layers)
    )


def _is_ranges(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(seen, Tensor) and seen.dim() == 2 and len(seen) == 2
        for name, seen in value.items()
    )
