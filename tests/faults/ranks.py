"""A run on two processes, the second of which does something else: ``python -m tests.faults.ranks WHAT FOLDER``."""

import os
import signal
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


class Signalled(L.Callback):
    """Signals come to one process, or to both at different steps; the first process says what became of each.

    Args:
        what: ``"SIGTERM 0:1 1:2"``: the signal, and which process gets it in which batch.
        folder: For what the processes say, and for the checkpoint that a handler of SIGUSR1 makes, as one of SLURM's.
    """

    def __init__(self, what: str, folder: Path) -> None:
        self.signal, *places = what.split()
        self.places, self.folder = [tuple(map(int, place.split(":"))) for place in places], folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        path = self.folder / "requeued.ckpt"
        signal.signal(signal.SIGUSR1, lambda *_: trainer.save_checkpoint(path))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_rank, trainer.global_step) in self.places:
            os.kill(os.getpid(), getattr(signal, self.signal))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        said = f"{type(exception).__name__} after {trainer.global_step} steps"
        (self.folder / f"{trainer.global_rank}.txt").write_text(said)
        torch.save(weights(pl_module), self.folder / f"{trainer.global_rank}.pt")


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
    checkpoint = folder / "requeued.ckpt" if what == "resume" else None
    model = Recurrent("lstm", bounded=False, growth=0.3)
    run = trainer(
        folder,
        *([] if what == "plain" else [StabilityProjectionCallback(0.9), FeedForwardShadowCallback(2)]),
        Signalled(what, folder) if what.startswith("SIG") else Second("dies" if what == "plain" else what),
        strategy="ddp",
        devices=2,
        max_epochs=2,
        use_distributed_sampler=False,
    )
    run.fit(model, datamodule=Data(what), ckpt_path=checkpoint, weights_only=False)
    torch.save(weights(model), folder / f"{run.global_rank}.pt")
