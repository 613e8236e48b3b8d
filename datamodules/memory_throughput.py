"""Memory throughput: how many real numbers does a state hold?"""

from __future__ import annotations

import torch

from lightning_stable import checks
from lightning_stable.datamodules.generated import Batch, GeneratedDataModule, seeded


class MemoryThroughputDataModule(GeneratedDataModule):
    """Say at the end of a sequence everything that was in it.

    Inputs are drawn uniformly from [-1, 1], of shape ``(batch, delay + length, input_size)`` with zeros in the last
    ``delay`` steps; targets are all ``length * input_size`` numbers, in their order, of shape
    ``(batch, length * input_size)`` and asked for at the last step. Both are float32. A model that says 0 has a mean
    squared error of 1/3, and a linear head on h units of at least ``(1 - h / values) / 3``: no more than h uncorrelated
    numbers of variance 1/3 are linear in h. Source: the input history of Collins, Sohl-Dickstein & Sussillo, Capacity
    and Trainability in Recurrent Neural Networks (2017); the bound is that of Jaeger, Short Term Memory in Echo State
    Networks (2001), proposition 2.

    Args:
        length: Time steps with numbers.
        input_size: Numbers per time step.
        delay: Time steps of silence before the answer.
        train_size: Training sequences.
        valid_size: Validation sequences.
        test_size: Test sequences.
        batch_size: Sequences per batch and device.
        seed: Seed of everything that is drawn.

    Attributes:
        values: Numbers to hold, ``length * input_size``.
        baseline: Mean squared error of a model that remembers nothing, 1/3.

    Raises:
        ValueError: Naming the argument that has a wrong type or range.
    """

    baseline = 1 / 3

    def __init__(
        self,
        *,
        length: int = 16,
        input_size: int = 1,
        delay: int = 0,
        train_size: int = 20_000,
        valid_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        checks.integer("length", length)
        checks.integer("input_size", input_size)
        if delay != 0:
            checks.integer("delay", delay)
        super().__init__(
            train_size=train_size,
            valid_size=valid_size,
            test_size=test_size,
            batch_size=batch_size,
            generator=seeded(seed),
        )
        self.length = length
        self.input_size = input_size
        self.delay = delay
        self.values = length * input_size

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw the numbers, which are the targets as well."""
        inputs = torch.zeros(size, self.length + self.delay, self.input_size)
        inputs[:, : self.length] = torch.rand(size, self.length, self.input_size, generator=generator) * 2 - 1
        return inputs, inputs[:, : self.length].flatten(1)
