"""Models and data for the tests of the shadow callback, in one process and in two."""

import random
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lightning_stable.callbacks import FeedForwardShadowCallback
from tests.helpers import Recurrent, Sequences

WHOLE = 1000  # a window no sequence is longer than: the twin is the model


class Noisy(Recurrent):
    """Draws from every global generator, in its dropout, its hooks and its loss."""

    def __init__(self, core: Any = "lstm", *, growth: float = 0.1, **kwargs: Any) -> None:
        if isinstance(core, str):
            kwargs = {"num_layers": 2, "dropout": 0.2, **kwargs}
        super().__init__(core, growth=growth, **kwargs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.scale = 1 + 0.1 * random.random()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = self.loss(batch) * self.scale * (1 + 0.1 * np.random.rand())  # noqa: NPY002
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=2)
        return loss


class Loader:
    """Goes on where a checkpoint was made."""

    def __init__(self, batches: int, **kwargs: Any) -> None:
        self.data = Sequences(2 * batches, **kwargs).data.split(2)
        self.given = self.start = 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        self.given, self.start = self.start, 0
        for batch in self.data[self.given :]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


class AfterBatch(L.Callback):
    """Copies the weights of the model and of the twins after every batch."""

    def __init__(self, *shadows: FeedForwardShadowCallback) -> None:
        self.shadows: tuple[FeedForwardShadowCallback, ...] = shadows
        self.model: list[dict[str, Tensor]] = []
        self.twins: list[list[dict[str, Tensor]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.model.append(state(pl_module))
        self.twins.append([state(shadow.twin) for shadow in self.shadows])


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: value.detach().clone() for name, value in tensors}


def seed() -> None:
    L.seed_everything(1, verbose=False)
