"""Perceptron capacity: how many random labels can a model learn by heart?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.datamodules.fixed_patterns import FixedPatternsDataModule


class PerceptronCapacityDataModule(FixedPatternsDataModule):
    """Random sequences with random binary labels: targets 0 or 1 in float32, of shape ``(patterns, 1)``.

    Bits are measured with :class:`~lightning_stable.metrics.MutualInformation` on the very patterns that were trained,
    with the number of patterns for which they are most. Source: Collins, Sohl-Dickstein & Sussillo, Capacity and
    Trainability in Recurrent Neural Networks (2017), after Gardner (1988). Arguments: see
    :class:`~lightning_stable.datamodules.fixed_patterns.FixedPatternsDataModule`.
    """

    def answers(self, generator: torch.Generator) -> Tensor:
        """Draw labels, 0 or 1 with probability 1/2."""
        return torch.randint(2, (self.patterns, 1), generator=generator).float()
