"""The experiment from end to end: all trainings, and a table of the longest sequences that were solved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor
from typing_extensions import override

from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules.generated import GeneratedDataModule
from lightning_stable.experiments.forgetting.options import BitTask, ForgettingOptions
from lightning_stable.experiments.pool import one_thread
from lightning_stable.experiments.results import Row, read_results, write_results
from lightning_stable.models import SequenceRegressor
from lightning_stable.printing import counted
from lightning_stable.quiet import quiet

# Share of sequences whose bit is told rightly; half of them are by chance.
SOLVED = 0.95
_BATCH = 64


class BitDataModule(GeneratedDataModule):
    """Bits, as 1 and -1, and what is to be known of them after every step.

    Args:
        task: ``"hold"``: the first bit, in front of silence. ``"parity"``: of all bits so far, whether an odd number
            of them are 1.
        length: Steps after the first.
        kwargs: The other arguments of the base class.
    """

    def __init__(self, task: BitTask, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task, self.length = task, length

    @override
    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (size, self.length + 1, 1), generator=generator)
        if self.task == "parity":
            return 2.0 * bits - 1, (bits.cumsum(1) % 2).float()
        inputs = 2.0 * bits - 1
        inputs[:, 1:] = 0
        return inputs, bits[:, :1].expand_as(bits).float()


@quiet()
def run_forgetting(options: ForgettingOptions) -> int:
    """Train what has no results yet, one after the other; write results after each, then show the table.

    Returns:
        The exit status, 0.
    """
    one_thread()
    console, rows = Console(), read_results(options.out)
    for task, cell, rate in product(options.tasks, options.cells, options.rates):
        for length in options.lengths:
            solved = False
            for seed in options.seeds:
                key: Row = {"task": task, "cell": cell, "rate": rate, "length": length, "seed": seed}
                row = next((row for row in rows if key.items() <= row.items()), None)
                if row is None:
                    row = {**key, "accuracy": train(task, cell, rate, length, seed, options)}
                    rows.append(row)
                    write_results(options.out, rows)
                    line = (
                        f"{task}, {cell}, rate {rate:g}, {counted(length, 'step')}, seed {seed}: {row['accuracy']:.1%}"
                    )
                    console.print(line, highlight=False)
                solved = row["accuracy"] >= SOLVED
                if solved:
                    break
            if not solved:
                break
    console.print(table(rows, options))
    return 0


def train(task: BitTask, cell: str, rate: float, length: int, seed: int, options: ForgettingOptions) -> float:
    """Train one network, and return the share of sequences whose bit it tells rightly after the last step."""
    seed_everything(seed, verbose=False)
    data = BitDataModule(task, length, train_size=_BATCH * options.steps, batch_size=_BATCH, seed=seed)
    data.setup()
    model = SequenceRegressor(1, 1, loss="binary", cell=cell, hidden_size=options.units, learning_rate=5e-3)
    callbacks: list[Callback] = []
    if rate < 1:
        norm = "full" if cell == "rnn" else None
        callbacks = [StabilityProjectionCallback(rate, input_bound=1.0, norm=norm)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data.train_dataloader())
    inputs, targets = data.draw(1000, torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        told = model.eval()(inputs)[:, -1] > 0
    return float((told == (targets[:, -1] > 0)).float().mean())


def table(rows: Sequence[Row], options: ForgettingOptions) -> Table:
    """Return the longest lengths solved, beside the steps after which a difference has fallen to a thousandth."""
    found = Table(title=f"Longest sequence whose bit is told rightly, {counted(options.units, 'unit')}")
    found.add_column("")
    for rate in options.rates:
        halved = f"\n{math.log(1e-3) / math.log(rate):.0f}" if rate < 1 else ""
        found.add_column((f"rate {rate:g}" if rate < 1 else "unconstrained") + halved, justify="right")
    for task, cell in product(options.tasks, options.cells):
        found.add_row(f"{task}, {cell}", *(_longest(rows, task, cell, rate) for rate in options.rates))
    return found


def _longest(rows: Sequence[Row], task: str, cell: str, rate: float) -> str:
    own = [row for row in rows if (row["task"], row["cell"], row["rate"]) == (task, cell, rate)]
    solved = [row["length"] for row in own if row["accuracy"] >= SOLVED]
    return str(max(solved)) if solved else "none" if own else ""
