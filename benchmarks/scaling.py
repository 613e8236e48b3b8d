"""How costs grow with the size, and what each callback adds to a step, on one process or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import linear_regression, median

import lightning as L
import torch

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
from lightning_stable.models import LanguageModel
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection.projector import Projector

BASE = {"units": 128, "time": 128, "batch": 20, "window": 16, "layers": 1}
AXES = {
    "units": (64, 128, 256, 512),
    "time": (64, 128, 256, 512),
    "batch": (5, 10, 20, 40),
    "window": (4, 8, 16, 32),
    "layers": (1, 2, 3, 4),
}
# One layer of the demo's size.
PROJECTION_BASE = {"units": 128, "features": 200, "words": 1750, "layers": 1}
PROJECTION_CURVES = (
    ("projection", "rnn", "units", (128, 256, 512, 1024)),
    ("projection", "lstm", "units", (64, 128, 256, 512)),
    ("projection", "lstm", "words", (1000, 4000, 16_000)),
    ("projection", "lstm", "layers", (1, 2, 3, 4)),
    ("certificate", "lstm", "units", (64, 128, 256)),
    ("certificate", "lstm", "words", (1000, 4000, 16_000)),
)
CALLBACKS: dict[str, Callbacks] = {
    "projection": lambda: [StabilityProjectionCallback(0.99)],
    "shadow k=10": lambda: [FeedForwardShadowCallback(10)],
    "truncation profile": lambda: [TruncationProfileCallback()],
    "state gradient": lambda: [StateGradientCallback()],
}


def scaling(
    axes: Mapping[str, tuple[int, ...]] = AXES,
    base: Mapping[str, int] = BASE,
    cell: str = "lstm",
    rounds: int = 5,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time forward and backward along each axis, the others as in ``base``, against the smallest size.

    The names carry the exponent ``p`` fitted to ``seconds ~ size ** p``.
    """
    for axis, sizes in axes.items():
        sides = {}
        for size in sizes:
            shape = {**base, axis: size}
            shapes = (shape["time"], shape["batch"], shape["units"], shape["layers"])
            layer, inputs = case(CELLS[cell], *shapes, device=device)
            sides[str(size)] = partial(train, truncate(layer, shape["window"], share=True), inputs)
        seconds_by_size = in_turn(dict(sides), rounds, device)
        yield from _along(axis, {size: seconds_by_size[str(size)] for size in sizes}, f"truncated {cell}", device)


def projection_scaling(
    curves: Sequence[tuple[str, str, str, tuple[int, ...]]] = PROJECTION_CURVES,
    base: Mapping[str, int] = PROJECTION_BASE,
    rounds: int = 7,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time projections and certificates of language models along one size, against the smallest.

    Before every projection each recurrent weight moves by the learning rate, up or down, as a step of Adam moves it.

    Args:
        curves: What is timed (``projection`` or ``certificate``), the cell, the axis and its sizes.
        base: The other sizes.
        rounds: The number of times that every size is measured.
        device: ``cpu`` or ``cuda``.
    """
    for what, cell, axis, sizes in curves:
        sides = {str(size): _checked_step(what, cell, {**base, axis: size}, device) for size in sizes}
        seconds_by_size = in_turn(sides, rounds, device)
        yield from _along(axis, {size: seconds_by_size[str(size)] for size in sizes}, f"{what} {cell}", device)


def _checked_step(what: str, cell: str, shape: Mapping[str, int], device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model = LanguageModel(
        shape["words"],
        cell=cell,
        hidden_size=shape["units"],
        embedding_size=shape["features"],
        num_layers=shape["layers"],
        dropout=0.0,
        input_dropout=0.0,
    ).to(device)
    projector = Projector(model, Constraint(0.99))
    weights = [value.detach() for name, value in model.core.named_parameters() if "weight_hh" in name]
    updates = [torch.randn_like(value).sign() * 1e-3 for value in weights]

    def step() -> None:
        for weight, update in zip(weights, updates, strict=True):
            weight.add_(update)
        projector.project(strict=False)

    step()
    return step if what == "projection" else projector.certify


def world_sizes(sizes: tuple[int, ...] = (1, 2), rounds: int = 5, units: int = 200) -> Iterator[Comparison]:
    """Time steps of an LSTM language model with projection and twin, by DDP on the cores of this machine."""
    seconds_by_size: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            settings = {"units": units, "vocabulary": 1750, "steps": 16, "processes": size, "clocked": True}
            seconds_by_size[size].append(step_seconds(_projection_and_twin, **settings))
    yield from _along("processes", seconds_by_size, "projection and twin", "cpu")


def _along(axis: str, seconds_by_size: Mapping[int, list[float]], what: str, device: str) -> Iterator[Comparison]:
    exponent = fitted_exponent({size: median(seconds) for size, seconds in seconds_by_size.items()})
    smallest = min(seconds_by_size)
    for size, seconds in seconds_by_size.items():
        pairs = list(zip(seconds_by_size[smallest], seconds, strict=True))
        name = f"{what} over {axis} (exponent {exponent:.2f})"
        yield compared(name, size, device, f"{axis} {smallest}", pairs, 0.0)


def _projection_and_twin() -> Sequence[L.Callback]:
    return [StabilityProjectionCallback(0.99), FeedForwardShadowCallback(10)]


def fitted_exponent(seconds: dict[int, float]) -> float:
    """``p`` in ``seconds ~ size ** p``: return the slope of the logarithms."""
    points = [(math.log(size), math.log(value)) for size, value in seconds.items()]
    return linear_regression(*zip(*points, strict=True)).slope


def callbacks(
    processes: int = 2,
    units: int = 200,
    vocabulary: int = 1750,
    runs: int = 5,
    steps: int = 24,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time training steps of an LSTM language model with each callback and without, in turn."""
    step = partial(step_seconds, units=units, vocabulary=vocabulary, steps=steps, processes=processes, device=device)
    for name, callback in CALLBACKS.items():
        pairs = [(step(nothing), step(callback)) for _ in range(runs)]
        noun = "process" if processes == 1 else "processes"
        yield compared(f"{name} with {processes} {noun}", units, device, "plain trainer", pairs, 0.0)
