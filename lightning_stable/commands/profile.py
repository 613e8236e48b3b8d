"""``lightning-stable profile``."""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_stable import checks
from lightning_stable.checkpoints import load_model, read_checkpoint
from lightning_stable.commands.data import load_data
from lightning_stable.commands.input_bound import parse_input_bound
from lightning_stable.commands.run_on_data import record
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability.certify import certify_recurrences
from lightning_stable.stability.inputs.resolve import Sources, resolve_sources
from lightning_stable.stability.inputs.sets import Recorded
from lightning_stable.stability.report import LayerCertificate, StabilityReport, format_rate

# What inputs may leave a set by, relative to the largest: they were computed in float32.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ModuleProfile:
    """What was found for one recurrent module.

    Attributes:
        profile: Its truncation errors, measured and certified.
        layers: Certificates of its layers.
        guarantee: What the certified window holds for: ``"guaranteed"``, ``"data"`` or ``"none"``.
        measured: Smallest window within the tolerance on the data; None if none up to the longest is.
        certified: Smallest window certified to be within the tolerance; None if there is none.
        sequences: How many were measured.
        time: Length of the longest.
    """

    profile: TruncationProfile
    layers: tuple[LayerCertificate, ...]
    guarantee: str
    measured: int | None
    certified: int | None
    sequences: int
    time: int


def run(options: argparse.Namespace) -> int:
    """Profile the recurrent modules of a checkpoint on data: print a table, write plots and ``profile.csv``.

    Raises:
        ValueError: If checkpoint or data cannot be read, or no inputs reach a recurrence.
    """
    _quiet()
    checks.number("tolerance", options.tolerance, "(0, inf)")
    model = load_model(read_checkpoint(options.checkpoint), options.class_path, dict(options.arguments))
    find_recurrences(model)
    inputs = record(model, [load_data(path) for path in options.data], options.batches)
    if not inputs:
        raise ValueError(f"`--data` must make the model call its recurrences. Got {[str(p) for p in options.data]}.")
    found = profile_modules(model, inputs, options.input_bound, options.max_window, options.tolerance)
    console = Console()
    console.print(_table(found, options.max_window, options.tolerance))
    for path in _write(found, options.out):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def profile_modules(
    model: LightningModule, inputs: dict[str, Any], input_bound: str | None, max_window: int, tolerance: float
) -> dict[str, ModuleProfile]:
    """Measure and certify the windows of recurrent modules.

    Args:
        model: The model, in evaluation mode.
        inputs: What each module is given, by its name, from :func:`~lightning_stable.commands.run_on_data.record`.
        input_bound: As it was given on the command line; None takes what follows from the model, then the range of
            the inputs.
        max_window: Longest window measured.
        tolerance: Error a window may leave.

    Raises:
        ValueError: If the inputs are not within ``input_bound``.
    """
    recurrences = [recurrence for recurrence in find_recurrences(model) if recurrence.module_name in inputs]
    bound = None if input_bound is None else parse_input_bound(input_bound)
    sources = resolve_sources(model, recurrences, bound, training=False)
    for name, given in inputs.items():
        if bound is not None and bound.excess(given.data) > _ROUNDING * given.data.abs().amax():
            raise ValueError(
                f"`--input-bound` must hold for the data. Got inputs of {name!r} outside {bound.describe()}."
            )
    for recurrence in recurrences:
        name = recurrence.module_name
        if recurrence.layer == 0 and not {name, recurrence.name} & sources.keys():
            sources[name] = _range(inputs[name])
    report = certify_recurrences(recurrences, sources, training=False)
    found = {}
    for bounds in report.bounds:
        name = bounds.name
        layers = (layer for r, layer in zip(recurrences, report.layers, strict=True) if r.module_name == name)
        profile = truncation_profile(
            model.get_submodule(name), inputs[name], max_window, input_bound=_inside(name, sources), name=name
        )
        found[name] = ModuleProfile(
            profile=profile,
            layers=tuple(layers),
            guarantee=bounds.guarantee,
            measured=profile.required_window(tolerance),
            certified=bounds.required_window(tolerance),
            sequences=_lanes(inputs[name]),
            time=_time(inputs[name]),
        )
    return found


def _range(inputs: Tensor | PackedSequence) -> Recorded:
    seen = inputs.data.double().flatten(end_dim=-2)
    return Recorded(seen.amin(0), seen.amax(0))


def _inside(name: str, sources: Sources) -> Sources:
    """The input sets of a module and its layers, by their names inside it."""
    prefix = f"{name}." if name else ""
    inside = {key.removeprefix(prefix): found for key, found in sources.items() if key.startswith(prefix)}
    return inside | ({"": sources[name]} if name in sources else {})


def _lanes(inputs: Tensor | PackedSequence) -> int:
    return int(inputs.batch_sizes[0]) if isinstance(inputs, PackedSequence) else inputs.shape[1]


def _time(inputs: Tensor | PackedSequence) -> int:
    return len(inputs.batch_sizes) if isinstance(inputs, PackedSequence) else len(inputs)


def _table(found: dict[str, ModuleProfile], max_window: int, tolerance: float) -> Table:
    table = Table(
        title=f"Windows that leave an error of at most {tolerance:g}",
        caption="* for inputs in the range of these only",
    )
    for column in ("module", "sequences", "measured\nwindow", "certified\nwindow", "measured\nrate", "certified\nrate"):
        table.add_column(column, justify="left" if column == "module" else "right")
    for name, module in found.items():
        worst = StabilityReport(module.layers)
        on_data = any(layer.guarantee == "data" for layer in module.layers)
        table.add_row(
            name or "the model",
            f"{module.sequences}, up to {module.time} steps",
            f"> {max_window}" if module.measured is None else str(module.measured),
            "none" if module.certified is None else f"{module.certified}{_mark(module.guarantee == 'data')}",
            f"{module.profile.rate:.3g}",
            f"{format_rate(worst.rate)}{_mark(on_data)}",
        )
    return table


def _mark(on_data: bool) -> str:
    return "*" if on_data else ""


def _write(found: dict[str, ModuleProfile], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written, lines = [], ["module,window,max_error,mean_error,certified_bound"]
    for name, module in found.items():
        file = f"{name or 'model'}.png".replace("/", "-")  # keys of a ModuleDict may have slashes
        written.append(folder / file)
        module.profile.plot().savefig(written[-1], dpi=150)
        columns = (module.profile.windows, module.profile.max_error, module.profile.mean_error, module.profile.bound)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            lines.append(",".join((name, *map(str, row))))
    written.append(folder / "profile.csv")
    written[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning against a newer torch
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
