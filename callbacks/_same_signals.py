"""Signals that reach processes at different steps, or one of them only: all processes handle them at one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

_MOST = 65  # signals have numbers up to 64


class SameSignals:
    """Returns the signals that wait in any process; to be called by all of them at the same step.

    Handlers save or end a run together with the other processes, so one that runs alone waits for ever, or its
    collective operations meet those of a step. Lightning asks the first process at every step whether it was told to
    end, and waits for the device; this costs as much again.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._device = trainer.strategy.root_device

    def __call__(self, waiting: Sequence[int]) -> list[int]:
        """Return their numbers in increasing order, from those of this process."""
        own = [number in waiting for number in range(_MOST)]
        waits = torch.tensor(own, dtype=torch.int32, device=self._device)
        torch.distributed.all_reduce(waits, torch.distributed.ReduceOp.MAX)
        found: list[int] = waits.nonzero().flatten().tolist()
        return found
