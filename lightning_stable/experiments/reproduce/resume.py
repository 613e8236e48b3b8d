"""The files of a run between two starts: what is kept of it, and what goes when it starts anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_stable.bases import Callback

_LAST = "last.ckpt"


def checkpoints(folder: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return folder / "checkpoints"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which a run goes on; None if it has no whole epoch."""
    path = checkpoints(folder) / _LAST
    return path if path.is_file() else None


def clear(folder: Path) -> None:
    """Remove what a run has left: checkpoints, TensorBoard's files and the result."""
    shutil.rmtree(checkpoints(folder), ignore_errors=True)
    shutil.rmtree(tensorboard(folder) / folder.name, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)


def tensorboard(folder: Path) -> Path:
    """Return the folder that TensorBoard shows: one for all runs, which it lays side by side."""
    return folder.parent.parent / "tensorboard"


class KeepLast(Callback):
    """Keeps a checkpoint of every whole epoch, from which a run goes on as if it had not been stopped.

    It is written when the next epoch begins: schedulers that follow a metric make their step after all other hooks of
    an epoch. The random states, which Lightning does not keep, are in it.

    Args:
        folder: The folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = checkpoints(folder) / _LAST
        self._generator: torch.Generator | None = None  # of the order of the training batches, if they have one
        self._restored: dict[str, Any] | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the loops begin an epoch: Lightning takes the batches of the last one for those of the next."""
        if self._restored is not None:
            trainer.fit_loop.restarting = False  # of all loops
            trainer.fit_loop.on_iteration_done()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, or after a restart draw on from where the random states were."""
        self._generator = getattr(trainer.train_dataloader, "generator", None)
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None
        elif trainer.current_epoch > 0:
            trainer.save_checkpoint(self._path)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the random states."""
        devices: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        order = None if self._generator is None else self._generator.get_state()
        return {"cpu": torch.get_rng_state(), "cuda": devices, "order": order}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the random states until the epoch begins: what is made before it may draw numbers."""
        self._restored = state_dict

    def _restore(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"].cpu())
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        if self._generator is not None:
            self._generator.set_state(states["order"].cpu())
