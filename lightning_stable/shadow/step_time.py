"""What the twin costs: time per step with it, over the time without."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

# Events of longer intervals would pile up; the last batches tell as much.
_BATCHES = 100


class Clock:
    """Marks on the device's own time line, read only when asked for the ratio.

    Args:
        device: CUDA devices are timed with events, others with the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: deque[tuple[Any, Any, Any, Any]] = deque(maxlen=_BATCHES)
        self._start: Any = None
        self._model_end: Any = None
        self._twin_start: Any = None

    def start(self) -> None:
        """The model's step begins."""
        self._start, self._model_end = self._now(), None

    def model_done(self) -> None:
        """The model's step has ended; only the first call in a batch counts."""
        self._model_end = self._model_end or self._now()

    def twin_start(self) -> None:
        """The twin's step begins."""
        self._twin_start = self._now()

    def twin_done(self) -> None:
        """The twin's step has ended."""
        self._marks.append((self._start, self._model_end or self._twin_start, self._twin_start, self._now()))

    def ratio(self) -> float | None:
        """Time of both over that of the model since the last call; None if nothing was timed."""
        if not self._marks:
            return None
        if self._cuda:
            self._marks[-1][-1].synchronize()
        model = sum(self._between(start, end) for start, end, _, _ in self._marks)
        twin = sum(self._between(start, end) for _, _, start, end in self._marks)
        self._marks.clear()
        return (model + twin) / model if model > 0 else None

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self._cuda else end - start)
