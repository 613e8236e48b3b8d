"""What is left to gain: products that cannot be avoided, and memory that has to be touched, beside the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.timing import Comparison, compared, duration
from benchmarks.training import WARM_UP, training
from benchmarks.truncation import CELLS, case, in_turn, products, train
from lightning_stable import truncate
from lightning_stable.models import LanguageModel
from lightning_stable.stability.projection.project import Constraint
from lightning_stable.stability.projection.sets import clip_singular_values, gram_eigh

# Cell and units: a matrix that is clipped by a subspace, and the demo's model and a larger one.
PROJECTIONS = (("rnn", 512), ("lstm", 128), ("lstm", 512), ("gru", 128))
# Units of matrices that are clipped by a whole decomposition.
CLIPS = (256, 512)
# Time, batch, units, window.
TRUNCATIONS = ((256, 20, 128, 25),)
_RATE = 0.99


def limits(
    projections: tuple[tuple[str, int], ...] = PROJECTIONS,
    truncations: tuple[tuple[int, int, int, int], ...] = TRUNCATIONS,
    clips: tuple[int, ...] = CLIPS,
    steps: int = 10,
    rounds: int = 5,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time projections and truncated layers in turn with their products alone and their memory alone.

    The ratio to either is the fraction of that floor. Of a clip the products are those that apply it to the singular
    values at the bound, were their vectors known; of a gated cell those of the leak gate's rows with the table. Of a
    truncated layer they are those of the recurrence, forward and backward. Memory is what has to be read and written
    once: recurrent weights and the table, or the states of every window, written forward and read backward.

    Args:
        projections: Cells and their units.
        truncations: Shapes as ``(time, batch, units, window)``.
        clips: Units of an RNN whose singular values are clipped exactly; its floor is the decomposition.
        steps: The number of training steps after which the projection is timed.
        rounds: The number of times that every side of a truncated layer is measured.
        device: ``cpu`` or ``cuda``.
    """
    for cell, units in projections:
        yield from _projection(cell, units, steps, device)
    for units in clips:
        yield _decomposition(units, steps, device)
    for shape in truncations:
        for name, cell_type in CELLS.items():
            yield from _truncation(name, cell_type, shape, rounds, device)


def _projection(cell: str, units: int, steps: int, device: str) -> Iterator[Comparison]:
    seconds: dict[str, list[tuple[float, float]]] = {}
    for step, (model, projector) in enumerate(
        islice(training(cell, units, Constraint(_RATE), device), WARM_UP + steps)
    ):
        floors = {"products": _products(model, cell), "memory": _memory(model, cell)}
        times = {name: duration(floor, device) for name, floor in floors.items()}
        ours = duration(lambda p=projector: p.project(strict=False), device)  # type: ignore[misc]
        if step >= WARM_UP:
            for name, floor in times.items():
                seconds.setdefault(name, []).append((floor, ours))
    for name, pairs in seconds.items():
        yield compared(f"projection {cell}", units, device, f"its {name} alone", pairs, float("nan"))


def _decomposition(units: int, steps: int, device: str) -> Comparison:
    pairs: list[tuple[float, float]] = []
    for step, (model, projector) in enumerate(
        islice(training("rnn", units, Constraint(_RATE), device), WARM_UP + steps)
    ):
        weight = model.core.get_parameter("weight_hh_l0").detach()
        floor, ours = (
            duration(partial(side, weight), device)
            for side in (gram_eigh, partial(clip_singular_values, bound=_RATE, reading=True))
        )
        projector.project(strict=False)
        if step >= WARM_UP:
            pairs.append((floor, ours))
    return compared("exact clip rnn", units, device, "its decomposition alone", pairs, float("nan"))


def _products(model: LanguageModel, cell: str) -> Callable[[], None]:
    weight = model.core.get_parameter("weight_hh_l0").detach()
    if cell == "rnn":
        vectors = torch.linalg.svd(weight).Vh
        vectors = vectors[: int((torch.linalg.svdvals(weight) >= _RATE).sum())]
        return lambda: _apply(weight, vectors)
    units = weight.shape[1]
    rows, table = model.core.get_parameter("weight_ih_l0").detach()[:units], model.embedding.weight.detach()
    return lambda: _discard(rows @ table.t())


def _memory(model: LanguageModel, cell: str) -> Callable[[], None]:
    weight = model.core.get_parameter("weight_hh_l0").detach()
    copy = torch.empty_like(weight)
    table = None if cell == "rnn" else model.embedding.weight.detach()

    def touch() -> None:
        copy.copy_(weight)
        if table is not None:
            table.sum()

    return touch


def _apply(weight: Tensor, vectors: Tensor) -> None:
    moved = weight @ vectors.t()
    torch.addmm(weight, moved, vectors, alpha=-0.5)


def _discard(_: Tensor) -> None:
    """Take what a side computes and nobody needs."""


def _truncation(
    name: str, cell: type[nn.RNNBase], shape: tuple[int, int, int, int], rounds: int, device: str
) -> Iterator[Comparison]:
    time, batch, units, window = shape
    layer, inputs = case(cell, time, batch, units, device=device)
    rows = (time - window) * batch
    sides: dict[str, Callable[[], object]] = {
        "ours": partial(train, truncate(layer, window, share=True, recompute=False), inputs),
        "products": partial(products, layer, rows, window),
        "memory": partial(_write_and_read, inputs, rows, units * (2 if name == "lstm" else 1), window),
    }
    seconds = in_turn(sides, rounds, device)
    for floor in ("products", "memory"):
        pairs = list(zip(seconds[floor], seconds["ours"], strict=True))
        yield compared(
            f"truncated {name} T={time} k={window}", units, device, f"its {floor} alone", pairs, float("nan")
        )


def _write_and_read(like: Tensor, rows: int, entries: int, window: int, block: int = 500) -> None:
    """Write the states of all steps of all windows, and read them again, in blocks as large as ours."""
    with torch.no_grad():
        state = like.new_ones(block, entries)
        for low in range(0, rows, block):
            kept = like.new_empty(window, min(block, rows - low), entries)
            for step in kept:
                step.copy_(state[: len(step)])
            for step in reversed(kept.unbind(0)):
                state[: len(step)].copy_(step)
