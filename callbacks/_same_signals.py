"""Signals that reach processes at different steps, or one of them only: all processes handle them at one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MOST = 65  # signals have numbers up to 64


class SameSignals:
    """Returns the signals that wait in any process; to be made and called by all of them together.

    Handlers save or end a run together with the other processes, so one that runs alone waits for ever, or its
    collective operations meet those of a step. The processes tell each other on the host: no device is waited for.
    """

    def __init__(self) -> None:
        gloo = torch.distributed.get_backend() == "gloo"
        self._group = None if gloo else torch.distributed.new_group(backend="gloo")

    def __call__(self, waiting: Sequence[int]) -> list[int]:
        """Return their numbers in increasing order, from those of this process."""
        waits = torch.tensor([number in waiting for number in range(_MOST)], dtype=torch.int32)
        torch.distributed.all_reduce(waits, torch.distributed.ReduceOp.MAX, group=self._group)
        found: list[int] = waits.nonzero().flatten().tolist()
        return found
