"""A model of polyphonic music: which keys sound in the next frame?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_stable import checks
from lightning_stable.metrics import frame_nll
from lightning_stable.models.sequence_model import SequenceModel

# Inputs, targets, lengths (on the CPU) and mask of padded sequences.
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class MusicModel(SequenceModel):
    """Predicts the next frame of a piano roll: core, dropout, and a logit per key.

    Batches are padded sequences ``(inputs, targets, lengths, mask)``, as :class:`~lightning_stable.datamodules.
    ChoralesDataModule` makes them. Logs ``train_nll`` per step, ``val_nll`` and ``test_nll`` per epoch: the negative
    log-likelihood per frame in nats, summed over the keys, each frame of a split counting the same.

    Args:
        keys: Keys of a frame.
        cell: ``"rnn"``, ``"irnn"``, ``"ugrnn"``, ``"gru"``, ``"lstm"`` or ``"intersection"``.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        hidden_size: Units or channels per layer.
        num_layers: Number of layers.
        dropout: Dropout between the layers (inside a convolutional core) and before the head.
        input_dropout: Dropout of the keys. A certificate that covers training must hold for every mask, which double
            the inputs at a half; for a stable gated model 0 is the better choice.
        window: None for a recurrent model; k for the truncated, feed-forward one, in which a prediction depends on
            the last k frames only.
        kernel_size: Of a convolutional core; None for its default.
        key_frequencies: How often each key sounds, in (0, 1): what the untrained head predicts. A head that had to
            learn this first would distort the core meanwhile. None starts as torch's layers do.
        learning_rate: Of the default optimizer, Adam.

    Raises:
        MisconfigurationException: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        keys: int = 88,
        *,
        cell: str = "lstm",
        core: str | None = None,
        hidden_size: int = 200,
        num_layers: int = 1,
        dropout: float = 0.2,
        input_dropout: float = 0.0,
        window: int | None = None,
        kernel_size: int | None = None,
        key_frequencies: Sequence[float] | None = None,
        learning_rate: float = 1e-3,
    ) -> None:
        checks.integer("keys", keys)
        checks.number("input_dropout", input_dropout, "[0, 1)")
        super().__init__(
            keys,
            keys,
            cell=cell,
            core=core,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            window=window,
            kernel_size=kernel_size,
            learning_rate=learning_rate,
        )
        self.save_hyperparameters()
        self.input_dropout = nn.Dropout(input_dropout)
        if key_frequencies is not None:
            self._start_at(torch.as_tensor(key_frequencies))

    @torch.no_grad()
    def _start_at(self, frequencies: Tensor) -> None:
        if frequencies.shape != self.head.bias.shape or not ((frequencies > 0) & (frequencies < 1)).all():
            raise MisconfigurationException(
                f"`key_frequencies` must be {len(self.head.bias)} numbers between 0 and 1. Got {frequencies.tolist()}."
            )
        self.head.bias.copy_(frequencies.logit())

    def forward(self, rolls: Tensor) -> Tensor:
        """Logits of the keys in the next frame, ``(batch, time, keys)``, for frames of the same shape."""
        return self.read(self.input_dropout(rolls))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean over the frames of the batch."""
        total, frames = self._score(batch)
        loss = total / frames
        self.log("train_nll", loss, prog_bar=True, batch_size=int(batch[2].sum()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the negative log-likelihood; return that of the batch."""
        return self.log_average("val_nll", *self._score(batch), dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the negative log-likelihood."""
        self.log_average("test_nll", *self._score(batch), dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the probabilities of the keys in the next frame."""
        return self(batch[0]).sigmoid()  # type: ignore[no-any-return]

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets, _, mask = batch
        return frame_nll(self(inputs), targets, mask)
