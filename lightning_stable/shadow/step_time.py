"""What the twin costs: the time of a step with it over the time of a step without."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

# The events of a longer interval would pile up, and the last batches tell as much.
_BATCHES = 100


class StepTime:
    """Times steps of the model and of the twin by marks on the device's own time line, read only for the ratio.

    Args:
        device: The device of both; a CUDA device is timed with events, others with the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: deque[tuple[Any, Any, Any, Any]] = deque(maxlen=_BATCHES)
        # Marks of the present batch, a number or a CUDA event; None until they are set.
        self._start: Any = None
        self._model_end: Any = None
        self._twin_start: Any = None

    def start(self) -> None:
        """Mark the beginning of the model's step."""
        self._start, self._model_end = self._now(), None

    def model_done(self) -> None:
        """Mark the end of the model's step; only the first call in a batch counts."""
        self._model_end = self._model_end or self._now()

    def twin_start(self) -> None:
        """Mark the beginning of the twin's step."""
        self._twin_start = self._now()

    def twin_done(self) -> None:
        """Mark the end of the twin's step."""
        self._marks.append((self._start, self._model_end or self._twin_start, self._twin_start, self._now()))

    def ratio(self) -> float | None:
        """``(model + twin) / model``, the times since the last call; None if nothing was timed."""
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
