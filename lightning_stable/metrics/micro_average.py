"""Averages of losses that a model has computed, exact over any number of batches and devices."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MicroAverage(Metric):
    """The sum of the losses over their number, of everything seen since the last reset; nan without a loss.

    This is a micro average: each token or frame counts the same, whatever the length of its batch and the device that
    scored it.
    """

    # torchmetrics' own means (and its text.Perplexity) sum in float32, which loses digits over millions of tokens.

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, nll: Tensor, count: int | Tensor | None = None) -> None:
        """Add tokens or frames.

        Args:
            nll: Negative log-likelihoods in nats: one per token or frame, of any shape, or already summed.
            count: Number of tokens or frames in ``nll``; by default its number of elements.

        Raises:
            ValueError: If ``count`` is negative.
        """
        if isinstance(count, int) and count < 0:
            raise ValueError(f"`count` must not be negative. Got {count}.")
        self._widen()
        self.total = self.total + nll.detach().to(self.total.dtype).sum()
        self.count = self.count + (nll.numel() if count is None else count)

    def compute(self) -> Tensor:
        """Return the average in nats, a scalar."""
        return self.total / self.count

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronize the processes, all of which sum in the same precision."""
        self._widen()  # a process without a token has not been there yet
        super().sync(*args, **kwargs)

    def _widen(self) -> None:
        # Not in the constructor: ``model.to("mps")`` fails on float64 and ``model.to(torch.bfloat16)`` would narrow it.
        self.total = self.total.to(torch.float32 if self.total.device.type == "mps" else torch.float64)
