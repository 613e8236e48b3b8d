"""Mutual information between random labels and what a model says they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_stable import checks


def mutual_information(correct: int, total: int) -> float:
    """Return ``b (1 + p log2 p + (1 - p) log2 (1 - p))`` with ``b = total`` and ``p = correct / total``.

    These are the bits that ``total`` balanced random labels and predictions share, of which ``correct`` agree: b binary
    symmetric channels. Source: Collins, Sohl-Dickstein & Sussillo, Capacity and Trainability in Recurrent Neural
    Networks (2017).

    Guesses rarely agree with exactly half of the labels, so they measure about 0.72 bits in all, not none.

    Args:
        correct: Labels predicted correctly.
        total: Labels.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If ``correct`` does not lie in 0 .. ``total``.
    """
    total = checks.integer("total", total, 0)
    correct = checks.integer("correct", correct, 0, total)
    # Whole labels instead of their share: p log2 p needs no care at 0, and the two sides are exactly symmetric.
    return total - sum(part * math.log2(total / part) for part in (correct, total - correct) if part)


class MutualInformation(Metric):
    """The bits that random binary labels and their predictions share, of everything seen since the last reset.

    They are :func:`mutual_information` of the labels counted over any number of batches and devices, exactly; 0 without
    a label.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add labels.

        Args:
            predicted: Labels 0 or 1 (or bool) that the model predicts, of any shape.
            labels: The true ones, of the same shape.

        Raises:
            ValueError: If the shapes differ.
        """
        if predicted.shape != labels.shape:
            raise ValueError(
                "`predicted` and `labels` must have the same shape. "
                f"Got {tuple(predicted.shape)} and {tuple(labels.shape)}."
            )
        self.correct = self.correct + (predicted.bool() == labels.bool()).sum()
        self.total = self.total + labels.numel()

    def compute(self) -> Tensor:
        """Return the bits, a scalar."""
        device = self.total.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.tensor(mutual_information(int(self.correct), int(self.total)), dtype=dtype, device=device)
