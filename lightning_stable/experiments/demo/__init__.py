"""The demo: the same LSTM on the text every Python carries, unconstrained and certified stable, each with its twin."""

from __future__ import annotations

import logging
import os
import warnings
from itertools import chain, count
from pathlib import Path

import torch
from rich.console import Console

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.experiments.demo.figures import plot_distances, plot_runs
from lightning_stable.experiments.demo.runs import Options, Run, distances_over_steps, train
from lightning_stable.experiments.demo.tables import comparison_table, distance_factor, twin_table

__all__ = ["Options", "Run", "run_demo"]


def run_demo(out: Path, options: Options) -> int:
    """Train both models with their twins, print the comparison, write TensorBoard runs and figures.

    Args:
        out: Folder for everything written; a number is added to its name if there is something in it already.
        options: How to train.

    Returns:
        Exit status: 0 if the stable model is certified, 1 otherwise.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # Products of this size gain little from a second thread and lose a lot when another program wants the core.
        torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Small text on a few cores: workers would cost more than they bring.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning against a newer torch
    out = _unused(out)
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
    console.print(f"TensorBoard: tensorboard --logdir {out}", highlight=False, soft_wrap=True)
    return 0 if stable.is_stable else 1


def _unused(folder: Path) -> Path:
    """The folder itself, or the first of ``folder-2``, ``folder-3``, ... that does not hold an earlier demo."""
    candidates = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], candidates) if not path.exists() or not any(path.iterdir()))
