"""The files of a run between two starts: what is kept of it, and what goes when it starts anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

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
        self._restored: dict[str, Any] | None = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, or after a restart draw on from where the random states were."""
        if self._restored is not None:
            _set_random_states(self._restored)
            self._restored = None
        elif trainer.current_epoch > 0:
            trainer.save_checkpoint(self._path)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the random states."""
        devices: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": devices}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the random states until the epoch begins: what is made before it may draw numbers."""
        self._restored = state_dict


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
