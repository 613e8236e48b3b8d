"""Interleaved timing of two functions: the only kind of speed claim this project makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True)
class Comparison:
    """The medians of an interleaved run.

    Attributes:
        name: What was measured.
        size: Its size.
        device: Where it ran.
        baseline: What it was compared with.
        baseline_seconds: The median time of the baseline.
        ours_seconds: The median time of ours.
        ratio: The median of baseline over ours: above 1 ours is faster.
        error: How far ours is from what it should equal; NaN if there is nothing to equal.
        spread: The distance of the quartiles of the ratios; 0 for a single pair.
        extra: What else was measured on the way, by name; a column each in the table.
    """

    name: str
    size: int
    device: str
    baseline: str
    baseline_seconds: float
    ours_seconds: float
    ratio: float
    error: float
    spread: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return asdict(self)


def compared(
    name: str,
    size: int,
    device: str,
    baseline: str,
    pairs: list[tuple[float, float]],
    error: float,
    extra: Mapping[str, float] | None = None,
) -> Comparison:
    """Return the comparison of pairs of durations, baseline and ours, measured right after each other."""
    ratios = [pair[0] / pair[1] for pair in pairs]
    quarters = quantiles(ratios, n=4) if len(ratios) > 1 else [0.0, 0.0, 0.0]
    theirs, ours = (median(side) for side in zip(*pairs, strict=True))
    spread = quarters[2] - quarters[0]
    return Comparison(name, size, device, baseline, theirs, ours, median(ratios), error, spread, dict(extra or {}))


def duration(function: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds of one call: of this processor on a CPU, where other programs would count, else of a clock.

    A processor's seconds are those of all threads, so that one thread is to be set. On an accelerator its work is
    waited for.
    """
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start
