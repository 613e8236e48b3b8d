"""What the projection adds to whole training steps of a Trainer, hooks and all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L

from benchmarks.timing import Comparison, compared
from benchmarks.trainers import nothing, step_seconds, step_times
from lightning_stable.callbacks import StabilityProjectionCallback

# Cell, units, features, vocabulary, steps of a run: the demo's model, and a word model with a vocabulary as large as
# Penn Treebank's.
CASES = (("lstm", 128, 200, 1750, 40), ("rnn", 512, 200, 10_000, 12))
# Even, so that the first step of a pair is not projected.
_WARM_UP = 4


def overhead(
    cases: tuple[tuple[str, int, int, int, int], ...] = CASES, device: str = "cpu", runs: int = 10
) -> Iterator[Comparison]:
    """Time runs without and with the callback in turn, then single steps; a ratio below 1 is the cost.

    Two runs are seconds apart, and a shared machine becomes faster or slower meanwhile. ``every other step`` compares
    steps that follow each other in one run, of which the second is projected.
    """
    for cell, units, features, vocabulary, steps in cases:
        settings: dict[str, Any] = {
            "cell": cell,
            "units": units,
            "features": features,
            "vocabulary": vocabulary,
            "device": device,
        }
        pairs = _runs_in_turn(runs, steps=steps, **settings)
        yield compared(f"trainer {cell} with projection", units, device, "plain trainer", pairs, 0.0)
        times = step_times(partial(_projection, 2), steps=steps * runs, **settings)[_WARM_UP:]
        pairs = list(zip(times[0::2], times[1::2], strict=False))
        yield compared(f"trainer {cell} with projection, every other step", units, device, "step before", pairs, 0.0)


def _runs_in_turn(runs: int, **settings: Any) -> list[tuple[float, float]]:
    """Return the step times of pairs of runs; the plain one and the other come first in turn."""
    pairs, projected = [], partial(_projection, 1)
    for index in range(runs):
        if index % 2:
            ours, plain = step_seconds(projected, **settings), step_seconds(nothing, **settings)
        else:
            plain, ours = step_seconds(nothing, **settings), step_seconds(projected, **settings)
        pairs.append((plain, ours))
    return pairs


def _projection(every: int) -> Sequence[L.Callback]:
    return [StabilityProjectionCallback(0.99, every_n_steps=every)]
