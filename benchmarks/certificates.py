"""Certificates of whole models in float64, against a singular value decomposition and against a training step.

Gates at the same input are compared with gates one by one, over an embedding table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import nn

from benchmarks.timing import Comparison, compared, duration
from benchmarks.training import training
from lightning_stable import certify
from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import FiniteSet
from lightning_stable.stability.projection.project import Constraint

SIZES = (128, 256, 512)
TABLE = (10_000, 200)  # words and units
_RATE = 0.99


def certificates(sizes: tuple[int, ...] = SIZES, rounds: int = 7) -> Iterator[Comparison]:
    """Time certificates: of RNNs against an SVD, of gated cells against a training step.

    ``error`` is how far the rate of an RNN lies above its spectral norm.
    """
    for size in sizes:
        (model, projector) = next(training("rnn", size, Constraint(_RATE)))
        projector.project(strict=True)
        weight = model.core.get_parameter("weight_hh_l0").detach().double()
        pairs = [
            (duration(lambda w=weight: torch.linalg.svdvals(w)), duration(lambda m=model: certify(m)))  # type: ignore[misc]
            for _ in range(rounds)
        ]
        norm = torch.linalg.svdvals(weight)[0].item()
        yield compared("certify rnn", size, "cpu", "svdvals", pairs, certify(model).rate - norm)
    for cell in ("lstm", "gru"):
        for size in sizes:
            run = training(cell, size, Constraint(_RATE))
            pairs = []
            for model, projector in islice(run, rounds):
                projector.project(strict=True)
                ours = duration(lambda m=model: certify(m))  # type: ignore[misc]
                pairs.append((duration(lambda r=run: next(r)), ours))  # type: ignore[misc]
            yield compared(f"certify {cell}", size, "cpu", "a training step", pairs[1:], 0.0)
    for cell in ("lstm", "gru"):
        yield _joint(cell, *TABLE, rounds)


def _joint(cell: str, words: int, units: int, rounds: int) -> Comparison:
    """Time the certificate of a cell behind an embedding table; ``error`` is by how much its rate is lower."""
    torch.manual_seed(0)
    module, table = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](units, units), FiniteSet(torch.randn(words, units))

    def one_by_one() -> float:
        (recurrence,) = recurrences_of(module)
        weights = recurrence.weights()
        return recurrence.contraction(weights, table.drive(weights["weight_ih"])).rate.item()

    def at_one_input() -> float:
        return certify(module, input_bound=table).rate

    with torch.no_grad():
        module.weight_hh_l0.mul_(0.05)
    pairs = [(duration(one_by_one), duration(at_one_input)) for _ in range(rounds)]
    return compared(
        f"certify {cell}, {words} words", units, "cpu", "gates one by one", pairs, one_by_one() - at_one_input()
    )
