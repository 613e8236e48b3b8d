"""What the feed-forward twin adds to a training step of a word-level language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import lightning as L

from benchmarks.timing import Comparison, compared
from benchmarks.trainers import nothing, step_seconds
from lightning_stable.callbacks import FeedForwardShadowCallback

CASES = (("lstm", 25), ("lstm", 10), ("rnn", 25), ("gru", 25), ("mingru", 25), ("minlstm", 25))


def shadow(
    cases: tuple[tuple[str, int], ...] = CASES,
    units: int = 200,
    vocabulary: int = 10_000,
    runs: int = 3,
    steps: int = 12,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time runs without and with the twin in turn (batch 20, 35 tokens); ``1 / ratio`` is the factor of the cost."""
    for cell, window in cases:
        step = partial(step_seconds, cell=cell, units=units, vocabulary=vocabulary, steps=steps, device=device)
        twin = partial(_twin, window)
        pairs = [(step(nothing), step(twin)) for _ in range(runs)]
        yield compared(f"trainer {cell} with twin k={window}", units, device, "plain trainer", pairs, 0.0)


def _twin(window: int) -> Sequence[L.Callback]:
    return [FeedForwardShadowCallback(window)]
