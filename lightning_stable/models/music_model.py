"""A model of polyphonic music: which keys sound in the next frame?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable import checks
from lightning_stable.metrics import frame_nll
from lightning_stable.models.plain import plain
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
        hidden_size: Units or channels per layer.
        dropout: Dropout between the layers (inside a convolutional core) and before the head.
        input_dropout: Dropout of the keys. A certificate that covers training must hold for every mask, and masks
            double the inputs at a half; for a stable gated model 0 is the better choice.
        key_frequencies: How often each key sounds, in (0, 1): what the untrained head predicts. A head that had to
            learn this first would distort the core meanwhile. None starts as torch's layers do.
        kwargs: The other arguments of :class:`~lightning_stable.models.CoreModel`.
    """

    def __init__(
        self,
        keys: int = 88,
        *,
        hidden_size: int = 200,
        dropout: float = 0.2,
        input_dropout: float = 0.0,
        key_frequencies: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size=hidden_size, dropout=dropout, **kwargs)
        keys = checks.integer("keys", keys)
        self.build(keys, keys)
        self.input_dropout = nn.Dropout(checks.number("input_dropout", input_dropout, "[0, 1)"))
        if key_frequencies is not None:
            self._start_at(plain(key_frequencies))

    @torch.no_grad()
    def _start_at(self, frequencies: Sequence[float]) -> None:
        bias = self.head.bias
        if not isinstance(frequencies, Sequence) or isinstance(frequencies, str):
            raise TypeError(f"`key_frequencies` must be {len(bias)} numbers in (0, 1). Got {frequencies!r}.")
        if len(frequencies) != len(bias):
            raise ValueError(f"`key_frequencies` must be {len(bias)} numbers in (0, 1). Got {frequencies!r}.")
        bias.copy_(torch.tensor([checks.number("key_frequencies", one, "(0, 1)") for one in frequencies]).logit())

    def forward(self, rolls: Tensor) -> Tensor:
        """Return the logits of the keys in the next frame, ``(batch, time, keys)``, for frames of the same shape."""
        return self.read(self.input_dropout(rolls))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood over the frames of the batch."""
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
