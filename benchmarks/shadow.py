"""What the feed-forward twin adds to a training step: that of a word-level language model."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.timing import Comparison, compared
from benchmarks.trainers import nothing, step_seconds
from lightning_stable.callbacks import FeedForwardShadowCallback

CASES = (("lstm", 25), ("lstm", 10), ("rnn", 25), ("gru", 25))


def shadow(
    cases: tuple[tuple[str, int], ...] = CASES,
    units: int = 200,
    vocabulary: int = 10_000,
    runs: int = 3,
    steps: int = 12,
) -> Iterator[Comparison]:
    """Runs without and with the twin in turn (batch 20, 35 tokens); ``1 / ratio`` is how many times a step costs."""
    for cell, window in cases:
        pairs = []
        for _ in range(runs):
            plain, both = (
                step_seconds(callbacks, cell=cell, units=units, vocabulary=vocabulary, steps=steps)
                for callbacks in (nothing, lambda: [FeedForwardShadowCallback(window)])  # noqa: B023
            )
            pairs.append((plain, both))
        yield compared(f"trainer {cell} with twin k={window}", units, "cpu", "plain trainer", pairs, 0.0)
