"""The experiment from end to end: all trainings, and the tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_stable import certify
from lightning_stable.experiments.cost.options import CostOptions
from lightning_stable.experiments.cost.variants import STUDIES, Variant
from lightning_stable.experiments.pool import one_thread
from lightning_stable.experiments.results import Row, read_results, write_results
from lightning_stable.experiments.small_tasks import SmallTask
from lightning_stable.printing import counted, print_whole
from lightning_stable.quiet import quiet
from lightning_stable.recurrence import Recurrence, find_recurrences
from lightning_stable.stability.report import format_rate


@quiet()
def run_cost(options: CostOptions) -> int:
    """Train what has no results yet, one after the other; write results after each, then show the tables.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If ``only`` names no variant.
    """
    variants = chosen(options)
    one_thread()
    console, rows = Console(), read_results(options.out)
    done = {_key(row) for row in rows}
    tasks = {name: SmallTask.load(name, options.data_dir) for name in options.tasks}
    todo = [
        (task, variant, seed)
        for seed in options.seeds
        for task in tasks.values()
        for variant in variants
        if (task.name, variant.name, seed, options.units) not in done
    ]
    for count, (task, variant, seed) in enumerate(todo, 1):
        row = train(task, variant, seed, options)
        rows.append(row)
        write_results(options.out, rows)
        shown = (
            f"{row['task']}, {row['variant']}, seed {seed}: {_loss(task.name, row['test'])} in {row['seconds']:.0f} s"
        )
        console.print(f"{count} of {len(todo)}: {shown}", highlight=False)
    for table in tables([row for row in rows if row["task"] in options.tasks], options):
        print_whole(console, table)
    return 0


def chosen(options: CostOptions) -> list[Variant]:
    """Return the variants to train, each once."""
    found = {variant.name: variant for study in options.studies for variant in STUDIES[study]}
    for name in options.only or ():
        if name not in found:
            raise ValueError(f"`--only` must name variants: {', '.join(map(repr, found))}. Got {name!r}.")
    return [variant for name, variant in found.items() if options.only is None or name in options.only]


def train(task: SmallTask, variant: Variant, seed: int, options: CostOptions) -> Row:
    """Train one model, and certify it."""
    more = {"dropout": options.text_dropout} if task.name == "text" else {}
    model: Any = task.model(
        seed, options.units, rate_factor=variant.rate_factor, cell=variant.cell, **more, **variant.model
    )
    if variant.start is not None:
        variant.start(model)
    epochs = options.text_epochs if task.name == "text" else options.music_epochs
    callbacks = variant.callbacks(task, options.rate)
    if options.averaging:
        from lightning.pytorch.callbacks import EMAWeightAveraging  # since Lightning 2.6

        callbacks.append(EMAWeightAveraging(decay=options.averaging))
    fitted = task.fit(model, callbacks, epochs)
    rate = certify(model, input_bound=task.input_bound).rate
    return {
        "task": task.name,
        "variant": variant.name,
        "seed": seed,
        "units": options.units,
        "parameters": sum(value.numel() for value in model.core.parameters()),
        "validation": fitted.validation,
        "test": fitted.test,
        "rate": rate if math.isfinite(rate) else None,
        "recurrent_norms": {r.name: _norms(r) for r in find_recurrences(model)},
        "epoch": fitted.epoch,
        "seconds": round(fitted.seconds, 1),
    }


def tables(rows: Sequence[Row], options: CostOptions) -> list[Table]:
    """Return a table for each task: means over seeds, and the loss above that of the best unconstrained model."""
    found, names = [], [variant.name for variant in chosen(options)]
    for task, group in groupby(sorted(rows, key=lambda row: str(row["task"])), key=lambda row: str(row["task"])):
        own = [row for row in group if row["variant"] in names and row["units"] == options.units]
        if not own:
            continue
        means = {name: [row for row in own if row["variant"] == name] for name in names}
        means = {name: each for name, each in means.items() if each}
        losses = {name: sum(row["test"] for row in each) / len(each) for name, each in means.items()}
        free = min((losses[name] for name in losses if ", " not in name), default=min(losses.values()))
        metric = "perplexity" if task == "text" else "nats per frame"
        table = Table(title=f"{task}: test {metric}, {counted(options.units, 'unit')}")
        for column in ("", "parameters", "validation", "test", "above", "rate", "seeds"):
            table.add_column(column, justify="right" if column else "left")
        for name, each in means.items():
            validation = sum(row["validation"] for row in each) / len(each)
            tests = [row["test"] for row in each]
            above = _ratio(task, losses[name], free)
            rates = [row["rate"] if row["rate"] is not None else math.inf for row in each]
            table.add_row(
                name,
                f"{each[0]['parameters']:,}",
                _loss(task, validation),
                f"{_loss(task, losses[name])} +- {_spread(task, tests)}",
                f"{above - 1:+.1%}",
                format_rate(max(rates)),
                str(len(each)),
            )
        found.append(table)
    return found


def _norms(recurrence: Recurrence) -> list[float]:
    """Return the largest row norm, the l1 norm, of every gate's recurrent weights."""
    blocks = recurrence.recurrent_blocks(recurrence.weights()).values()
    return [block.abs().sum(1).max().item() for block in blocks]


def _key(row: Row) -> tuple[object, ...]:
    return row["task"], row["variant"], row["seed"], row["units"]


def _loss(task: str, nats: float) -> str:
    return f"{math.exp(nats):.2f}" if task == "text" else f"{nats:.3f}"


def _ratio(task: str, nats: float, other: float) -> float:
    return math.exp(nats - other) if task == "text" else nats / other


def _spread(task: str, tests: Sequence[float]) -> str:
    """Return the standard deviation over seeds, in the unit of the table."""
    values = [math.exp(nats) if task == "text" else nats for nats in tests]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{deviation:.2f}" if task == "text" else f"{deviation:.3f}"
