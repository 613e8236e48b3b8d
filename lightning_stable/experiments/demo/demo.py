"""The demo from end to end: both trainings, the tables and the figures."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path

from rich.console import Console

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.experiments.demo.figures import plot_distances, plot_runs
from lightning_stable.experiments.demo.options import DemoOptions
from lightning_stable.experiments.demo.runs import distances_over_steps, train
from lightning_stable.experiments.demo.tables import comparison_table, distance_factor, twin_table
from lightning_stable.experiments.pool import one_thread
from lightning_stable.experiments.results import show
from lightning_stable.quiet import quiet


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
            f"Training the {name} {options.cell} and its twin, which sees {options.window} inputs: "
            f"{options.epochs} epochs, {options.hidden_size} units"
        )
        runs.append(train(name, projection, data, out, options))
    console.print(comparison_table(runs, floors))
    console.print(twin_table(runs, options.window))
    stable = runs[1].report
    assert stable is not None
    console.print(stable.table())
    figures = [plot_runs(runs, floors[0], options.rate, out / "learning_curves.png")]
    console.print(f"Twins of several windows beside each other, {options.distance_steps} steps")
    distances = {
        name: distances_over_steps(name, projection, data, out, options) for name, projection in projections.items()
    }
    console.print(distance_factor(distances["stable"]))
    figures.append(plot_distances(distances, out / "weight_distance.png"))
    for figure in figures:
        console.print(f"Figure:      {figure}", highlight=False, soft_wrap=True)
    show(console, TensorBoard=f"tensorboard --logdir {out}")
    return 0 if stable.is_stable else 1


def _unused(folder: Path) -> Path:
    """Return the folder itself, or the first of ``folder-2``, ``folder-3``, ... that does not hold an earlier demo."""
    candidates = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], candidates) if not path.exists() or not any(path.iterdir()))
