"""Interleaved timing of two functions: the only kind of speed claim this project makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Medians of an interleaved run, in seconds; ``ratio`` is baseline over ours, so above 1 means faster."""

    name: str
    size: int
    device: str
    baseline: str
    baseline_seconds: float
    ours_seconds: float
    ratio: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def interleave(baseline: Callable[[], object], ours: Callable[[], object], seconds: float = 1.0) -> tuple[float, float]:
    """Run both in turn for about ``seconds`` in total (at least 5 times) and return the medians."""
    baseline(), ours()
    durations: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(durations[0]) < 5:
        for function, found in zip((baseline, ours), durations, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return median(durations[0]), median(durations[1])
