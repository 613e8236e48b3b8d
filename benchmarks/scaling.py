"""How the cost of truncated evaluation grows, and what each callback adds to a step on several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import linear_regression, median

from benchmarks.timing import Comparison, compared
from benchmarks.trainers import Callbacks, nothing, step_seconds
from benchmarks.truncation import CELLS, case, in_turn, train
from lightning_stable import truncate
from lightning_stable.callbacks import (
    FeedForwardShadowCallback,
    StabilityProjectionCallback,
    StateGradientCallback,
    TruncationProfileCallback,
)

BASE = {"units": 128, "time": 128, "batch": 20, "window": 16, "layers": 1}
AXES = {
    "units": (64, 128, 256, 512),
    "time": (64, 128, 256, 512),
    "batch": (5, 10, 20, 40),
    "window": (4, 8, 16, 32),
    "layers": (1, 2, 3, 4),
}
CALLBACKS: dict[str, Callbacks] = {
    "projection": lambda: [StabilityProjectionCallback(0.99)],
    "shadow k=10": lambda: [FeedForwardShadowCallback(10)],
    "truncation profile": lambda: [TruncationProfileCallback()],
    "state gradient": lambda: [StateGradientCallback()],
}


def scaling(
    axes: Mapping[str, tuple[int, ...]] = AXES, base: Mapping[str, int] = BASE, cell: str = "lstm", rounds: int = 5
) -> Iterator[Comparison]:
    """Forward and backward along each axis, the others as in ``base``; against the smallest size of the axis.

    The names carry the exponent ``p`` fitted to ``seconds ~ size ** p``.
    """
    for axis, sizes in axes.items():
        sides = {}
        for size in sizes:
            shape = {**base, axis: size}
            layer, inputs = case(CELLS[cell], shape["time"], shape["batch"], shape["units"], shape["layers"])
            sides[str(size)] = partial(train, truncate(layer, shape["window"], share=True), inputs)
        found = in_turn(dict(sides), rounds)
        exponent = fitted_exponent({size: median(found[str(size)]) for size in sizes})
        for size in sizes:
            pairs = list(zip(found[str(sizes[0])], found[str(size)], strict=True))
            name = f"truncated {cell} over {axis} (exponent {exponent:.2f})"
            yield compared(name, size, "cpu", f"{axis} {sizes[0]}", pairs, 0.0)


def fitted_exponent(seconds: dict[int, float]) -> float:
    """Slope of the logarithm of the time over that of the size."""
    points = [(math.log(size), math.log(value)) for size, value in seconds.items()]
    return linear_regression(*zip(*points, strict=True)).slope


def callbacks(
    processes: int = 2, units: int = 200, vocabulary: int = 1750, runs: int = 3, steps: int = 16
) -> Iterator[Comparison]:
    """Training steps of an LSTM language model with each callback and without, in turn."""
    step = partial(step_seconds, units=units, vocabulary=vocabulary, steps=steps, processes=processes)
    for name, made in CALLBACKS.items():
        pairs = [(step(nothing), step(made)) for _ in range(runs)]
        yield compared(f"{name} with {processes} processes", units, "cpu", "plain trainer", pairs, 0.0)
