"""What all callbacks leave in a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_stable.bases import Callback
from lightning_stable.class_paths import record_class_path


class RecordsClassPath(Callback):
    """A callback that lets checkpoints say of which class their model is, so that a command can name it."""

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the import path of the model's class."""
        record_class_path(checkpoint, pl_module)
