"""Certificates of whole models in float64, against a singular value decomposition and against a training step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from benchmarks.timing import Comparison, compared, duration
from benchmarks.training import training
from lightning_stable import certify
from lightning_stable.stability.projection.project import Constraint

SIZES = (128, 256, 512)
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
