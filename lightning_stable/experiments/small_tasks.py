"""Tasks that a CPU learns in minutes: words of Python's documentation, and two collections of music."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable.datamodules import ChoralesDataModule, PythonDocsDataModule
from lightning_stable.models import LanguageModel, MusicModel
from lightning_stable.stability import ActiveEntries, InputSet

TaskName = Literal["text", "jsb", "piano-midi"]
_FOLDERS = {"jsb": "jsb_chorales", "piano-midi": "piano_midi"}


class Fitted(NamedTuple):
    """What a training found.

    Attributes:
        validation: The smallest loss on the validation split, in nats per word or frame.
        test: The loss on the test split after the epoch of that, to whose weights the model is set.
        epoch: The number of that epoch, from 1.
        seconds: How long the training took.
        logged: What was logged last while it trained.
    """

    validation: float
    test: float
    epoch: int
    seconds: float
    logged: dict[str, float]


@dataclass(frozen=True)
class SmallTask:
    """A data module, set up, with models and a trainer that fit it.

    Attributes:
        name: The name of the task.
        data: The data module.
        input_bound: The set of the inputs of the recurrence; None where the certificate finds it in the model.
    """

    name: TaskName
    data: Any
    input_bound: InputSet | None

    @classmethod
    def load(cls, name: TaskName, data_dir: Path | None = None, **options: Any) -> SmallTask:
        """Prepare the data.

        Args:
            name: The name of the task.
            data_dir: The folder with the file of a collection of music, or with a folder for each; None takes the
                cache, to which the file is downloaded.
            options: Arguments of the data module.
        """
        data: Any = PythonDocsDataModule(**options) if name == "text" else _music(name, data_dir, **options)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        return cls(name, data, None if name == "text" else ActiveEntries(data.max_active))

    def model(self, seed: int, units: int, *, rate_factor: float = 1.0, **options: Any) -> LightningModule:
        """Return a model with fresh weights.

        Args:
            seed: The seed of the weights, and of the training that follows.
            units: Recurrent units; on text also features of a word.
            rate_factor: The factor of the learning rate.
            options: Arguments of the model.
        """
        seed_everything(seed, verbose=False)
        if self.name == "text":
            # Dropout before the recurrence would make the certificate cover every mask.
            sizes: dict[str, Any] = {"hidden_size": units, "embedding_size": units, "input_dropout": 0.0}
            return LanguageModel(len(self.data.vocab), learning_rate=2e-3 * rate_factor, **sizes, **options)
        frequencies = self.data.key_frequencies
        return MusicModel(hidden_size=units, key_frequencies=frequencies, learning_rate=5e-3 * rate_factor, **options)

    def fit(self, model: LightningModule, callbacks: Sequence[Callback], epochs: int) -> Fitted:
        """Train a model, and set it to the weights of the epoch with the smallest loss on the validation split."""
        text = self.name == "text"
        with tempfile.TemporaryDirectory() as folder:
            best = ModelCheckpoint(folder, monitor="val_loss" if text else "val_nll")
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=[*callbacks, best],
                gradient_clip_val=0.25 if text else 1.0,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            start = time.perf_counter()
            trainer.fit(model, datamodule=self.data)
            seconds = time.perf_counter() - start
            logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
            checkpoint = torch.load(best.best_model_path, weights_only=True)
            epoch = int(checkpoint["epoch"]) + 1
            # Of a run with averaged weights the trainer would load the others.
            model.load_state_dict(checkpoint["state_dict"])
            (metrics,) = trainer.test(model, datamodule=self.data, verbose=False)
            assert best.best_model_score is not None
        tested = metrics["test_loss" if text else "test_nll"]
        return Fitted(best.best_model_score.item(), tested, epoch, seconds, logged)


def _music(name: Literal["jsb", "piano-midi"], data_dir: Path | None, **options: Any) -> ChoralesDataModule:
    folder = None if data_dir is None else data_dir / _FOLDERS[name]
    if folder is not None and not folder.is_dir():
        folder = data_dir
    return ChoralesDataModule(folder, name=name, batch_size=8, eval_batch_size=32, bucket=True, **options)
