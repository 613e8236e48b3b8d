"""What was computed from weights and input sets, for as long as their values stay what they were.

The end of an epoch asks for the same verdicts several times: for a validation, its logs, the epoch's own, and every
checkpoint. Values are compared, not torch's counts of writes, which a write through ``.data`` passes by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_stable.recurrence import Recurrence
from lightning_stable.stability.inputs.sets import (
    ActiveEntries,
    Box,
    FiniteSet,
    InputSet,
    L2Ball,
    LayerNormOutput,
    Recorded,
    SupNorm,
)

Result = TypeVar("Result")
# Of the trained weights and of the projected ones.
_SNAPSHOTS = 2
# Values of more bytes are not kept: every verdict is computed then.
_BYTES = 2**28
# What these hold is all that they depend on; another set may ask a model, a file or a clock.
_KNOWN = (ActiveEntries, Box, FiniteSet, L2Ball, LayerNormOutput, Recorded, SupNorm)


class _Snapshot(NamedTuple):
    kind: Hashable
    values: list[Tensor]
    results: dict[str, Any]


class Remembered:
    """Results by name, of the last few values that recurrences and their input sets had."""

    def __init__(self) -> None:
        self._snapshots: deque[_Snapshot] = deque(maxlen=_SNAPSHOTS)

    def __call__(
        self,
        name: str,
        recurrences: Sequence[Recurrence],
        sources: Mapping[str, InputSet],
        compute: Callable[[], Result],
    ) -> Result:
        """Return what ``compute`` returned for the present values, or call it.

        Args:
            name: What is computed; it must depend on nothing that changes but the values.
            recurrences: The recurrences, whose parameters count.
            sources: Their input sets.
            compute: Computes it, and may raise.
        """
        snapshot = self._present(recurrences, sources)
        if snapshot is None:
            return compute()
        if name not in snapshot.results:
            snapshot.results[name] = compute()
        found: Result = snapshot.results[name]
        return found

    def _present(self, recurrences: Sequence[Recurrence], sources: Mapping[str, InputSet]) -> _Snapshot | None:
        """Return the snapshot of the present values, a new one if there is none; None if they are not to be kept."""
        if not all(type(inputs) in _KNOWN for inputs in sources.values()):
            return None
        parameters = [value for recurrence in recurrences for value in recurrence.parameters().values()]
        values = [value.detach() for value in parameters]
        rest: list[tuple[Hashable, ...]] = []
        for name, inputs in sorted(sources.items()):
            for key, value in sorted(vars(inputs).items()):
                if isinstance(value, Tensor):
                    values.append(value.detach())
                    rest.append((name, type(inputs), key))
                else:
                    rest.append((name, type(inputs), key, value))
        if sum(value.numel() * value.element_size() for value in values) > _BYTES:
            return None
        kind = (
            tuple(recurrence.name for recurrence in recurrences),
            tuple((id(value), value.requires_grad) for value in parameters),  # frozen ones are not projected
            tuple(rest),
        )
        for snapshot in self._snapshots:
            if snapshot.kind == kind and all(map(_equal, snapshot.values, values)):
                return snapshot
        self._snapshots.append(_Snapshot(kind, [value.clone() for value in values], {}))
        return self._snapshots[-1]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
