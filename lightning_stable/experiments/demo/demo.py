"""The demo from end to end: both trainings, the tables and the figures."""

from __future__ import annotations

import shutil
import sys
from itertools import chain, count
from pathlib import Path
from shlex import quote

from rich.console import Console

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.experiments.demo.figures import plot_distances, plot_runs
from lightning_stable.experiments.demo.options import DemoOptions
from lightning_stable.experiments.demo.runs import (
    LINE,
    LONGEST_WINDOW,
    TOLERANCE,
    Run,
    checkpoint_of,
    distances_over_steps,
    make_model,
    train,
)
from lightning_stable.experiments.demo.tables import comparison_table, distance_factor, twin_table
from lightning_stable.experiments.pool import one_thread
from lightning_stable.experiments.results import show
from lightning_stable.files import write_text
from lightning_stable.printing import counted
from lightning_stable.quiet import quiet

# The data as a configuration, in lines as long as those that the tables speak of.
_DATA = f"""data:
  class_path: lightning_stable.datamodules.PythonDocsDataModule
  init_args: {{chunk_length: {LINE}}}
"""


@quiet()
def run_demo(options: DemoOptions) -> int:
    """Train both models with their twins, print the comparison, write TensorBoard runs and figures.

    Args:
        options: How to train. A number is added to the name of the folder if there is something in it already.

    Returns:
        The exit status: 0 if the stable model is certified, 1 otherwise.
    """
    # Products of this size gain little from a second thread and lose a lot when another program wants the core.
    one_thread()
    out = _unused(options.out)
    console = Console()
    data = PythonDocsDataModule()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    make_model(data, options, stable=True)  # what it refuses shows before another one is trained
    floors = data.unigram_perplexity("valid"), data.unigram_perplexity("test")
    console.print(
        f"Python's own documentation: vocabulary of {len(data.vocab)}. A model that knows only word frequencies "
        f"has test perplexity {floors[1]:.1f}."
    )
    projections = {
        "unconstrained": None,
        "stable": StabilityProjectionCallback(options.rate, gate_bound=options.gate_bound),
    }
    runs = []
    for name, projection in projections.items():
        console.print(
            f"Training the {name} {options.cell} and its twin, which sees {counted(options.window, 'input')}: "
            f"{counted(options.epochs, 'epoch')}, {counted(options.hidden_size, 'unit')}"
        )
        runs.append(train(name, projection, data, out, options))
    console.print(comparison_table(runs, floors))
    console.print(twin_table(runs, options.window))
    stable = runs[1].report
    assert stable is not None
    console.print(stable.table())
    figures = [plot_runs(runs, floors[0], options.rate, out / "learning_curves.png")]
    console.print(f"Twins of several windows beside each other, {counted(options.distance_steps, 'step')}")
    distances = {
        name: distances_over_steps(name, projection, data, out, options) for name, projection in projections.items()
    }
    console.print(distance_factor(distances["stable"]))
    figures.append(plot_distances(distances, out / "weight_distance.png"))
    show(
        console,
        Runs=", ".join(str(out / run.name) for run in runs),
        Checkpoints=", ".join(str(checkpoint_of(out, run.name)) for run in runs),
        Figures=", ".join(map(str, figures)),
    )
    console.print("\nWhat to try next:")
    for line in _next_steps(runs[1], out, options):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    return 0 if stable.is_stable else 1


def _next_steps(stable: Run, out: Path, options: DemoOptions) -> list[str]:
    """Return command lines for the stable checkpoint, ready to be copied; the data they need is described in a file."""
    checkpoint = quote(str(checkpoint_of(out, stable.name)))
    data = write_text(out / "data.yaml", _DATA)
    assert stable.profile is not None
    window = stable.profile.required_window(TOLERANCE) or options.window
    ours = _program("lightning-stable", "lightning_stable")
    return [
        f"{ours} certify {checkpoint} --tolerance {TOLERANCE:g}",
        f"{ours} profile {checkpoint} --data {quote(str(data))} --max-window {LONGEST_WINDOW} "
        f"--out {quote(str(out / 'profile'))}",
        # Needs no extra, as ONNX does.
        f"{ours} export {checkpoint} --window {window} --format torch-export",
        f"{_program('tensorboard', 'tensorboard.main')} --logdir {quote(str(out))}",
    ]


def _program(name: str, module: str) -> str:
    """Return a program of this environment by its name where a shell finds that one, as a module of Python if not."""
    found, python = shutil.which(name), Path(sys.executable)
    return name if found and Path(found).parent == python.parent else f"{quote(str(python))} -m {module}"


def _unused(folder: Path) -> Path:
    """Return the folder itself, or the first of ``folder-2``, ``folder-3``, ... that does not hold an earlier demo."""
    candidates = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], candidates) if not path.exists() or not any(path.iterdir()))
