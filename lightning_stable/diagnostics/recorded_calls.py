"""The inputs that reach every recurrent module while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from lightning_stable.recurrence import Recurrence


class RecordedCalls:
    """Keeps of every batch the longest call of a module; the steps of a cell make one sequence."""

    def __init__(self, recurrences: dict[str, Recurrence]) -> None:
        self.batches: dict[str, list[Any]] = {}
        self._recurrences = recurrences
        self._calls: dict[str, list[Any]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record the calls made inside."""
        handles = [
            recurrence.module.register_forward_pre_hook(partial(self._keep, name), with_kwargs=True)
            for name, recurrence in self._recurrences.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end_batch(self) -> None:
        """Keep the calls of the batch that is over."""
        for name, calls in self._calls.items():
            whole = max(calls, key=_size) if self._recurrences[name].takes_sequences else _steps(calls)
            self.batches.setdefault(name, []).append(whole)
        self._calls = {}

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.setdefault(name, []).append(args[0] if args else kwargs["input"])

    def joined(self) -> dict[str, Any]:
        """All sequences recorded, by the name of the module: packed, or ``(time, batch, features)`` for cells."""
        return {name: _joined(self._recurrences[name], calls) for name, calls in self.batches.items()}


def _steps(calls: list[Tensor]) -> Tensor:
    """The steps of a cell as ``(time, batch, features)``."""
    steps = torch.stack(calls)
    return steps.unsqueeze(1) if steps.dim() == 2 else steps


def _joined(recurrence: Recurrence, calls: list[Any]) -> Any:
    if not recurrence.takes_sequences:
        # The beginning of a run is a run: all are cut to the length of the shortest.
        shortest = min(len(call) for call in calls)
        return torch.cat([call[:shortest] for call in calls], dim=1)
    batch_first = bool(recurrence.module.batch_first)
    return pack_sequence([row for call in calls for row in _rows(call, batch_first)], enforce_sorted=False)


def _rows(call: Tensor | PackedSequence, batch_first: bool) -> list[Tensor]:
    """The sequences of one call, ``(time, features)`` each."""
    if isinstance(call, PackedSequence):
        padded, lengths = pad_packed_sequence(call, batch_first=True)
        return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]
    if call.dim() == 2:
        return [call]
    return list(call if batch_first else call.transpose(0, 1))


def _size(call: Tensor | PackedSequence) -> int:
    return call.data.numel() if isinstance(call, PackedSequence) else call.numel()
