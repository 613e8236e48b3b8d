"""What the projection adds to whole training steps of a Trainer, hooks and all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import lightning as L

from benchmarks.timing import Comparison, compared
from benchmarks.trainers import nothing, step_seconds
from lightning_stable.callbacks import StabilityProjectionCallback

# Cell, units, features, vocabulary: the demo's model, and a word model with a vocabulary as large as Penn Treebank's.
CASES = (("lstm", 128, 200, 1750), ("rnn", 512, 200, 10_000))


def overhead(
    cases: tuple[tuple[str, int, int, int], ...] = CASES,
    device: str = "cpu",
    every: tuple[int, ...] = (1, 4),
    runs: int = 7,
    steps: int = 40,
) -> Iterator[Comparison]:
    """Runs without and with the callback in turn; ``ratio`` below 1 is what the projection costs.

    ``every`` are the values of ``every_n_steps``.
    """
    for cell, units, features, vocabulary in cases:
        step = partial(
            step_seconds, cell=cell, units=units, features=features, vocabulary=vocabulary, steps=steps, device=device
        )
        found = [(step(nothing), {n: step(partial(_projection, n)) for n in every}) for _ in range(runs)]
        for n in every:
            pairs = [(plain, projected[n]) for plain, projected in found]
            how = "" if n == 1 else f" every {n} steps"
            yield compared(f"trainer {cell} with projection{how}", units, device, "plain trainer", pairs, 0.0)


def _projection(every: int) -> Sequence[L.Callback]:
    return [StabilityProjectionCallback(0.99, every_n_steps=every)]
