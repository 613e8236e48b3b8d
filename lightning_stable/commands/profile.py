"""``lightning-stable profile``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lightning_stable.commands._checkpoint import CheckpointOptions, guarantee_notes, marked
from lightning_stable.options import Commands, OutputFolder, Positive, add_command, between
from lightning_stable.printing import counted, print_whole

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_stable.commands._windows import ModuleProfile


@dataclass(frozen=True, kw_only=True)
class Options(CheckpointOptions):
    """The options of the command.

    Attributes:
        data: A LightningCLI configuration (.yaml) whose 'data' section gives validation batches (the class it names is
            made, which runs its code), or a file that torch.save wrote of a tensor, which the model's forward takes as
            one batch; several are joined.
        batches: Validation batches of a configuration.
        max_window: Longest window measured.
        tolerance: Error of a module's output, in the Euclidean norm, that a window may leave.
        coverage: Share of all sequences for which the statistical window is enough.
        confidence: Probability with which it is.
        out: Folder for plots and table.
    """

    data: tuple[Path, ...] = field(metadata={"flag": "--data", "metavar": "CONFIG_OR_TENSOR"})
    batches: Positive = field(default=4, metadata={"metavar": "N"})
    max_window: Positive = field(default=32, metadata={"metavar": "K"})
    tolerance: Annotated[float, between("(0, inf)")] = field(default=1e-3, metadata={"metavar": "T"})
    coverage: Annotated[float, between("(0, 1)")] = field(default=0.95, metadata={"metavar": "SHARE"})
    confidence: Annotated[float, between("(0, 1)")] = field(default=0.95, metadata={"metavar": "P"})
    out: OutputFolder = field(default=Path("profile"), metadata={"metavar": "DIR"})


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "profile",
        Options,
        run,
        usage="%(prog)s CKPT --data CONFIG_OR_TENSOR [CONFIG_OR_TENSOR ...] [options]",
        help="measure how many inputs the recurrences of a checkpoint need, beside what is certified",
        description="Run the model of a checkpoint on data and compare every recurrent module with its windowed forms, "
        "which see the last inputs only. Prints the measured and the statistical window, and those that are certified: "
        "for these inputs (tube) and for all. Writes a plot per module and profile.csv.",
        examples=[
            "best.ckpt --data runs/copy/runs/gru/config.yaml --tolerance 0.01",
            "best.ckpt --data inputs.pt --max-window 100 --out runs/profile",
            "best.ckpt --data inputs.pt --class-path my_project.models.Tagger",
        ],
    )


def run(options: Options) -> int:
    """Profile the recurrent modules of a checkpoint on data: print a table, write plots and ``profile.csv``.

    Raises:
        ValueError: If checkpoint or data cannot be read, or no inputs reach a recurrence.
    """
    from rich.console import Console

    from lightning_stable.checkpoints import declared_inputs
    from lightning_stable.commands._windows import holds, load_data, profile_modules, record
    from lightning_stable.quiet import quiet
    from lightning_stable.recurrence import find_recurrences

    model, checkpoint = options.load()
    find_recurrences(model)  # a model without any is refused before the data is loaded
    with quiet():
        inputs = record(model, [load_data(path) for path in options.data], options.batches)
    if not inputs:
        raise ValueError(f"`--data` must make the model call its recurrences. Got {[str(p) for p in options.data]}.")
    console, declared = Console(), declared_inputs(checkpoint)
    if declared is not None and not all(holds(declared, sequences.data) for sequences in inputs.values()):
        left = f"These inputs leave the set that the checkpoint declares, {declared.describe()}"
        console.print(f"{left}: certified for their range.", markup=False, highlight=False, soft_wrap=True)
        declared = None
    profiles = profile_modules(model, inputs, options.input_bound, options.max_window, options.tolerance, declared)
    for name, module in profiles.items():
        console.print(verdict(name or "The model", module, options), markup=False, highlight=False, soft_wrap=True)
    print_whole(console, _table(profiles, options))
    for path in _write(profiles, options.out):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def verdict(name: str, module: ModuleProfile, options: Options) -> str:
    """Return one sentence or two: whether a module is certified stable, and for how long its past matters.

    Args:
        name: How to call the module.
        module: What was found.
        options: The options of the command.
    """
    from lightning_stable.stability.report import format_rate, why_no_bound

    longest = len(module.profile.windows)
    rate, small = format_rate(module.report.rate), f"the output by at most {options.tolerance:g}"
    certified = f"is certified stable (rate {rate}, {module.report.guarantee})"
    measured = (
        f"more than {counted(longest, 'input')} were needed here"
        if module.measured is None
        else f"{module.measured} were enough where it began at zero"
    )
    if not module.report.is_stable:
        return (
            f"{name} is not certified stable (rate {rate}). Of this data, {measured}; any other past may change more. "
            f"{why_no_bound(module.report)}"
        )
    if module.tube is None:
        seen = f"no window up to {longest} is certified for this data"
        more = "Longer sequences" if longest < options.max_window else "A larger --max-window"
        worst = (
            ""
            if module.certified is None
            else f"; {counted(module.certified, 'input')} are certified for all admissible inputs"
        )
        return f"{name} {certified}, but {seen}; {measured}{worst}. {more} or a larger --tolerance may give one."
    return (
        f"{name} {certified}: after {counted(module.tube, 'input')} of this data, the past changes {small}, "
        f"whatever it was; {measured}."
    )


def _table(profiles: dict[str, ModuleProfile], options: Options) -> Table:
    from rich.table import Table

    from lightning_stable.stability.report import format_rate

    table = Table(
        title=f"Windows that leave an error of at most {options.tolerance:g}",
        caption=_caption(profiles, options),
    )
    columns = (
        "measured\nwindow",
        "statistical\nwindow",
        "tube\nwindow",
        "certified\nwindow",
        "measured\nrate",
        "certified\nrate",
    )
    for column in ("module", "sequences\nx steps", *columns):
        table.add_column(column, justify="left" if column == "module" else "right")
    for name, module in profiles.items():
        report = module.report
        table.add_row(
            name or "the model",
            f"{module.sequences} x {module.time}",
            _within(module.measured, module),
            _statistical(module, options),
            _tube(module),
            marked(None if module.certified is None else str(module.certified), module.guarantee),
            f"{module.profile.rate:.3g}",
            marked(format_rate(report.rate), report.guarantee),
        )
    return table


def _statistical(module: ModuleProfile, options: Options) -> str:
    from lightning_stable.diagnostics.tolerance_limits import draws_needed

    if module.sequences < draws_needed(options.coverage, options.confidence):
        return "-"
    coverage, confidence = options.coverage, options.confidence
    window = module.profile.required_window(options.tolerance, coverage=coverage, confidence=confidence)
    return _within(window, module)


def _caption(profiles: dict[str, ModuleProfile], options: Options) -> str:
    from lightning_stable.diagnostics.tolerance_limits import draws_needed

    needed = draws_needed(options.coverage, options.confidence)
    tube = "tube: enough for these inputs, whatever comes before them"
    statistical = f"statistical: enough for {options.coverage:.4g} of all such sequences, with confidence "
    statistical += f"{options.confidence:.4g}"
    if any(module.sequences < needed for module in profiles.values()):
        statistical += f"; needs at least {needed} sequences, so raise --batches"
    guarantees = {
        guarantee for module in profiles.values() for guarantee in (module.guarantee, module.report.guarantee)
    }
    return "\n".join(filter(None, (statistical, tube, guarantee_notes(guarantees))))


def _tube(module: ModuleProfile) -> str:
    if module.profile.tube.isnan().all():
        return "-"
    return _within(module.tube, module) if module.profile.has_useful_tube else "none"


def _within(window: int | None, module: ModuleProfile) -> str:
    return f"> {len(module.profile.windows)}" if window is None else str(window)


def _write(profiles: dict[str, ModuleProfile], folder: Path) -> list[Path]:
    from lightning_stable.figures import save
    from lightning_stable.files import write_text

    written, lines = [], ["module,window,max_error,mean_error,tube,certified_bound"]
    for name, module in profiles.items():
        profile, file = (
            module.profile,
            f"{name or 'model'}.png".replace("/", "-"),
        )  # keys of a ModuleDict may have slashes
        written.append(save(profile.plot(), folder / file))
        columns = (profile.windows, profile.max_error, profile.mean_error, profile.tube, profile.bound)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            lines.append(",".join((name, *map(str, row))))
    return [*written, write_text(folder / "profile.csv", "\n".join(lines) + "\n")]
