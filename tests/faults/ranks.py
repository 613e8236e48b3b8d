"""A run on two processes, the second of which does something else: ``python -m tests.faults.ranks WHAT FOLDER``."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_stable.callbacks import FeedForwardShadowCallback, StabilityProjectionCallback
from tests.helpers import Recurrent, Sequences, sequences, trainer, weights

BATCHES = 4


class Endless(IterableDataset[Tensor]):
    """As many sequences as it is given, and no length."""

    def __init__(self, batches: int) -> None:
        self.data = Sequences(2 * batches)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.data


class Second(L.Callback):
    """What becomes of the second process."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            if self.what == "dies":
                os._exit(1)
            if self.what == "late":
                time.sleep(3)


class Data(L.LightningDataModule):
    """More batches for the second process, where these are what differs."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def train_dataloader(self) -> Any:
        more = self.trainer.global_rank if self.what in ("more", "unsized") else 0
        if self.what in ("unsized", "unsized alike"):
            return DataLoader(Endless(BATCHES + more), batch_size=2)
        return sequences(BATCHES + more)

    def val_dataloader(self) -> Any:
        return sequences(2, seed=1)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    model = Recurrent("lstm", bounded=False, growth=0.3)
    run = trainer(
        folder,
        *([] if what == "plain" else [StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2)]),
        Second("dies" if what == "plain" else what),
        strategy="ddp",
        devices=2,
        max_epochs=2,
        use_distributed_sampler=False,
    )
    run.fit(model, datamodule=Data(what))
    torch.save(weights(model), folder / f"{run.global_rank}.pt")
