"""Points of a random continuous function, to be learned by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_stable.datamodules.fixed_patterns import FixedPatternsDataModule


class RandomFunctionDataModule(FixedPatternsDataModule):
    """Random sequences with random real values: targets uniform in [-1, 1], float32, of shape ``(patterns, 1)``.

    A continuous function through random points. Saying 0 has a mean squared error of 1/3. Arguments: see
    :class:`~lightning_stable.datamodules.fixed_patterns.FixedPatternsDataModule`.
    """

    def answers(self, generator: torch.Generator) -> Tensor:
        """Draw values uniformly from [-1, 1]."""
        return torch.rand(self.patterns, 1, generator=generator) * 2 - 1
