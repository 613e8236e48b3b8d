"""Memory throughput: how many real numbers does a state hold?"""

from __future__ import annotations

from typing import Any

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule


class MemoryThroughputDataModule(GeneratedDataModule):
    """Repeat, at the end of a sequence, all the numbers that were in it.

    Inputs are drawn uniformly from [-1, 1], of shape ``(batch, delay + length, input_size)`` with zeros in the last
    ``delay`` steps. Targets are all ``length * input_size`` numbers, in their order, of shape
    ``(batch, length * input_size)``, and belong to the last step. Both are float32.

    A model that says 0 has a mean squared error of 1/3, and a linear head on h units has at least
    ``(1 - h / values) / 3``: no more than h uncorrelated numbers of variance 1/3 are linear in h. Source: the input
    history of Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent Neural Networks (2017); the
    bound is that of Jaeger, Short Term Memory in Echo State Networks (2001), proposition 2.

    Args:
        length: Time steps with numbers.
        input_size: Numbers per time step.
        delay: Time steps of silence before the answer.
        train_size: Training sequences.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.GeneratedDataModule`.

    Attributes:
        values: Numbers to hold, ``length * input_size``.
        baseline: Mean squared error of a model that remembers nothing, 1/3.
    """

    baseline = 1 / 3

    def __init__(
        self, *, length: int = 16, input_size: int = 1, delay: int = 0, train_size: int = 20_000, **kwargs: Any
    ) -> None:
        super().__init__(train_size=train_size, **kwargs)
        self.length = checks.integer("length", length)
        self.input_size = checks.integer("input_size", input_size)
        self.delay = checks.integer("delay", delay, 0)
        self.values = self.length * self.input_size

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the numbers, which are the targets as well."""
        inputs = torch.zeros(size, self.length + self.delay, self.input_size)
        inputs[:, : self.length] = torch.rand(size, self.length, self.input_size, generator=generator) * 2 - 1
        return inputs, inputs[:, : self.length].flatten(1)
