"""Loaders with which a run that was stopped inside an epoch goes on after the last batch it saw."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

_Batch = TypeVar("_Batch")


class Resumable(Generic[_Batch]):
    """Batches that are counted while they are read; a subclass says what they are and how many."""

    # Batches of the epoch that were read, and the batch the next epoch begins with: not 0 after a restart alone.
    _count = _first = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, first: int) -> Iterator[_Batch]:
        """Yield the batches of an epoch from number ``first`` on."""

    def __iter__(self) -> Iterator[_Batch]:
        first, self._first = self._first, 0
        return self._counted(first)

    def _counted(self, first: int) -> Iterator[_Batch]:
        # A generator runs no sooner than the first batch is asked for: Lightning makes the iterator before it sets the
        # epoch, on which the batches depend.
        self._count = first
        for batch in self.batches(first):
            self._count += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were read; Lightning asks for it when it makes a checkpoint."""
        return {"given": self._count % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch begin where a run was stopped."""
        self._first = state["given"]
