"""Random numbers: the twin draws the same as the model, and the model does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomStates:
    """States of the global generators of torch (CPU and one CUDA device), Python and NumPy.

    Attributes:
        device: The CUDA device, or any other device, which has no generator here.
        cpu: State of torch's CPU generator.
        cuda: State of the CUDA device's generator; None without one.
        python: State of Python's generator.
        numpy: State of NumPy's generator.
    """

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None
    python: Any
    numpy: Any

    @classmethod
    def capture(cls, device: torch.device) -> RandomStates:
        """Read all states; that of a CUDA generator lies on the host, so that nothing waits for the device."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())  # noqa: NPY002

    def restore(self) -> None:
        """Set all generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


@contextmanager
def isolated(device: torch.device, states: RandomStates | None = None) -> Iterator[None]:
    """Run the block with ``states`` (None: the present ones) and leave all generators as they were."""
    before = RandomStates.capture(device)
    if states is not None:
        states.restore()
    try:
        yield
    finally:
        before.restore()
