"""The windows that the recurrent modules of a model need on the data of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_stable.checkpoints import read_tensor, search_here
from lightning_stable.commands._checkpoint import parse_input_bound
from lightning_stable.commands.lightning import reason
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.diagnostics.recorded_calls import RecordedCalls
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability.certify import certify_recurrences
from lightning_stable.stability.inputs.resolve import Sources, resolve_sources
from lightning_stable.stability.inputs.sets import InputSet, Recorded
from lightning_stable.stability.report import LayerCertificate, StabilityReport
from lightning_stable.trainers import classes, trainer_class
from lightning_stable.truncation.exact.layout import Layout

# What inputs may leave a set by, relative to the largest: they were computed in float32.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ModuleProfile:
    """What was measured and certified for one recurrent module.

    Attributes:
        profile: Its truncation errors, measured and certified.
        layers: The certificates of its layers.
        guarantee: What the certified window rests on: ``"guaranteed"``, ``"derived"``, ``"data"`` or ``"none"``.
        measured: The smallest window within the tolerance on the data; None if none up to the longest is.
        tube: The smallest window certified to be within the tolerance for these inputs; None if none up to the longest
            is.
        certified: The smallest window certified to be within the tolerance; None if there is none.
        time: The length of the longest sequence.
    """

    profile: TruncationProfile
    layers: tuple[LayerCertificate, ...]
    guarantee: str
    measured: int | None
    tube: int | None
    certified: int | None
    time: int

    @property
    def sequences(self) -> int:
        """How many sequences were measured."""
        return self.profile.sequence_error.shape[1]

    @property
    def report(self) -> StabilityReport:
        """The certificates as a report, without windows."""
        return StabilityReport(self.layers)


def load_data(path: Path) -> Tensor | LightningDataModule:
    """Load the data module of a LightningCLI configuration (``.yaml``, ``.yml``), or the tensor in any other file.

    Raises:
        ValueError: If the file is neither.
    """
    if path.suffix not in (".yaml", ".yml"):
        return read_tensor(path, "--data")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"`--data` must be a YAML file that can be read. Got {str(path)!r}: {error}.") from error
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "class_path" not in data:
        raise ValueError(
            f"`--data` must be a configuration with a 'data' section and a 'class_path' in it. Got {str(path)!r}."
        )
    # As LightningCLI does: arguments are checked against their types, nested classes are made.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(classes("", "LightningDataModule"), "data")
    try:
        with search_here():
            module: LightningDataModule = parser.instantiate_classes(parser.parse_object({"data": data})).data
    except Exception as error:  # of jsonargparse, or of the class itself
        raise ValueError(
            f"`--data` must be a configuration whose data module can be made. Got {str(path)!r}: {reason(str(error))}"
        ) from error
    return module


def record(model: LightningModule, sources: Sequence[Tensor | LightningDataModule], batches: int) -> dict[str, Any]:
    """Run a model in evaluation mode on a few batches and keep what its recurrent modules are given.

    Args:
        model: The model; it is made float32 where it is less precise.
        sources: Tensors, which ``forward`` takes, and data modules, whose first batches are validated.
        batches: The number of batches of a data module.

    Returns:
        By the name of the recurrent module, all sequences joined: packed, or for cells a tensor of shape
        ``(time, batch, features)``. Modules that no inputs reached are left out.
    """
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    model.to(dtype)
    recorder = RecordedCalls({recurrence.module_name: recurrence for recurrence in find_recurrences(model)})
    with recorder.attached(), torch.no_grad():
        for source in sources:
            if isinstance(source, Tensor):
                model(source.to(dtype) if source.is_floating_point() else source)
                recorder.end_batch()
            else:
                trainer = trainer_class(model)(**_options(batches, dtype), callbacks=[_EndOfBatch(recorder)])
                if isinstance(trainer, Trainer) == isinstance(source, LightningDataModule):
                    trainer.validate(model, datamodule=source, verbose=False)
                else:  # each package's Trainer knows its own data modules only
                    source.prepare_data()
                    source.setup("validate")
                    trainer.validate(model, source.val_dataloader(), verbose=False)
    return recorder.joined()


class _EndOfBatch(Callback):
    """Tells a recorder where a batch ends."""

    def __init__(self, recorder: RecordedCalls) -> None:
        self._recorder = recorder

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._recorder.end_batch()


def _options(batches: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "64-true" if dtype == torch.float64 else "32-true",
        "limit_val_batches": batches,
        "inference_mode": False,  # what is recorded is used after the run
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def profile_modules(
    model: LightningModule,
    inputs: dict[str, Any],
    input_bound: str | None,
    max_window: int,
    tolerance: float,
    declared: InputSet | None = None,
) -> dict[str, ModuleProfile]:
    """Measure and certify the windows of recurrent modules, by the name of the module.

    Args:
        model: The model, in evaluation mode.
        inputs: What each module is given, by its name, from :func:`record`.
        input_bound: The input set as the command line writes it; None takes what follows from the model, then what is
            declared, then the range of the inputs.
        max_window: The longest window that is measured.
        tolerance: The error that a window may leave, in the Euclidean norm.
        declared: The set that the checkpoint declares, where it holds for the inputs.

    Raises:
        ValueError: If the inputs are not within ``input_bound``.
    """
    recurrences = [recurrence for recurrence in find_recurrences(model) if recurrence.module_name in inputs]
    bound = None if input_bound is None else parse_input_bound(input_bound)
    sources = resolve_sources(model, recurrences, bound, training=False)
    for name, sequences in inputs.items():
        if bound is not None and not holds(bound, sequences.data):
            raise ValueError(
                f"`--input-bound` must hold for the data. Got inputs of {name!r} outside {bound.describe()}."
            )
    for recurrence in recurrences:
        name = recurrence.module_name
        if recurrence.layer == 0 and not {name, recurrence.name} & sources.keys():
            sources[name] = _range(inputs[name]) if declared is None else declared
    report = certify_recurrences(recurrences, sources, training=False)
    profiles = {}
    for bounds in report.bounds:
        name = bounds.name
        layers = (layer for r, layer in zip(recurrences, report.layers, strict=True) if r.module_name == name)
        profile = truncation_profile(
            model.get_submodule(name), inputs[name], max_window, input_bound=_inside(name, sources), name=name
        )
        profiles[name] = ModuleProfile(
            profile=profile,
            layers=tuple(layers),
            guarantee=bounds.guarantee,
            measured=profile.required_window(tolerance),
            tube=profile.tube_window(tolerance),
            certified=bounds.required_window(tolerance),
            time=Layout.of(model.get_submodule(name), inputs[name]).time,
        )
    return profiles


def holds(bound: InputSet, values: Tensor) -> bool:
    """Return whether inputs are in a set, up to rounding."""
    return bool(bound.excess(values) <= _ROUNDING * values.abs().amax())


def _range(inputs: Tensor | PackedSequence) -> Recorded:
    seen = inputs.data.double().flatten(end_dim=-2)
    return Recorded(seen.amin(0), seen.amax(0))


def _inside(name: str, sources: Sources) -> Sources:
    """Return the input sets of a module and its layers, by their names inside it."""
    prefix = f"{name}." if name else ""
    inside = {key.removeprefix(prefix): source for key, source in sources.items() if key.startswith(prefix)}
    return inside | ({"": sources[name]} if name in sources else {})
