"""Models and optimizers for the tests of the projection callback."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as pl_callbacks
from torch import Tensor, nn

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from tests.helpers import (
    CELLS,
    FEATURES,
    UNITS,
    Recurrent,
)

RATE = 0.9


def averaging() -> L.Callback:
    """Lightning's averaged shadow, where this version has it."""
    if not hasattr(pl_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    return pl_callbacks.WeightAveraging()


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.3)


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def rate(model: nn.Module, **kwargs: Any) -> float:
    return certify(model, **kwargs).rate


def projection(**kwargs: Any) -> StabilityProjectionCallback:
    return StabilityProjectionCallback(**{"rate": RATE, **kwargs})


class Manual(Recurrent):
    """Two optimizers, the second in every second batch."""

    def __init__(self, *, raw: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization, self.raw = False, raw

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=not self.raw)
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.core.parameters(), lr=0.3), torch.optim.Adam(self.parameters(), lr=0.3)]


class Nest(nn.Module):
    """An encoder and a decoder, deep inside."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"core": CELLS[cell](FEATURES, UNITS, batch_first=True)})
        self.decoder = CELLS[cell](UNITS, UNITS, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder["core"](x)[0])


# The outputs of an intersection RNN are as large as its weights make them: they bound no other layer for certain, and
# huge steps send them to infinity.
BOUNDED = [cell for cell in CELLS if cell != "intersection"]
