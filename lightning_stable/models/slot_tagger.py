"""A model that tags the words of an utterance: which slot does each of them fill?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.metrics import ChunkF1
from lightning_stable.metrics.chunk_f1 import bio_labels
from lightning_stable.models.plain import plain
from lightning_stable.models.sequence_model import SequenceModel

# Inputs, targets, lengths (on the CPU) and mask of padded sequences.
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
UNKNOWN = 0  # the id of "<unk>" in a DictVocabulary


class SlotTagger(SequenceModel):
    """Tags words: embedding, core, dropout, and a score per label at every word.

    Batches are padded sequences ``(inputs, targets, lengths, mask)`` of ids, as :class:`~lightning_stable.datamodules.
    ATISDataModule` makes them. Logs ``train_loss`` per step, and per epoch ``val_loss`` and ``test_loss``, the cross
    entropy per word in nats, and ``val_f1`` and ``test_f1``, the F1 of whole chunks by the rules of conlleval.

    Args:
        vocab_size: Number of word ids; 0 is that of the unknown word.
        labels: Name of each label id: ``O``, ``B-x`` or ``I-x``.
        embedding_size: Features per word.
        hidden_size: Units or channels per layer (and direction).
        bidirectional: Read the utterance in both directions (convolutions: look to both sides).
        dropout: Dropout between the layers (inside a convolutional core) and before the scores.
        input_dropout: Dropout of the embedding's features. A certificate that covers training must hold for every
            mask; for a stable gated model 0 is the better choice.
        unknown_rate: Fraction of the words that the unknown word replaces in training. The model then learns to judge
            an unknown word by its context.
        kwargs: The other arguments of :class:`~lightning_stable.models.CoreModel`.
    """

    def __init__(
        self,
        vocab_size: int,
        labels: Sequence[str],
        *,
        embedding_size: int = 100,
        hidden_size: int = 100,
        bidirectional: bool = True,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        unknown_rate: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size=hidden_size, dropout=dropout, **kwargs)
        self.labels = bio_labels("labels", plain(labels))
        self.unknown_rate = checks.number("unknown_rate", unknown_rate, "[0, 1)")
        embedding_size = checks.integer("embedding_size", embedding_size)
        self.build(embedding_size, len(self.labels), bidirectional=bidirectional)
        self.embedding = nn.Embedding(checks.integer("vocab_size", vocab_size), embedding_size)
        self.input_dropout = nn.Dropout(checks.number("input_dropout", input_dropout, "[0, 1)"))

    def forward(self, words: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return scores of the labels, ``(batch, time, labels)``.

        Args:
            words: Ids, ``(batch, time)``.
            lengths: Lengths of padded utterances, on the CPU, ``(batch,)``; None if all are equally long.
        """
        return self.read(self.input_dropout(self.embedding(words)), lengths)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy over the words of the batch."""
        words, targets, lengths, mask = batch
        if self.unknown_rate:
            words = words.masked_fill(torch.rand(words.shape, device=words.device) < self.unknown_rate, UNKNOWN)
        total, count = self._score(self(words, lengths), targets, lengths, mask)
        loss = total / count
        self.log("train_loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log cross entropy and F1; return the cross entropy of the batch."""
        return self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log cross entropy and F1."""
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[list[str]]:
        """Return the labels of every utterance."""
        words, _, lengths, _ = batch
        best = self(words, lengths).argmax(-1)
        return [
            [self.labels[label] for label in row[:length]]
            for row, length in zip(best.tolist(), lengths.tolist(), strict=True)
        ]

    def _score(self, scores: Tensor, targets: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        nll = F.cross_entropy(scores.transpose(1, 2), targets.masked_fill(~mask, 0), reduction="none")
        return nll.masked_fill(~mask, 0.0).sum(), int(lengths.sum())

    def _evaluate(self, stage: str, batch: Batch, dataloader_idx: int) -> Tensor:
        words, targets, lengths, mask = batch
        scores = self(words, lengths)
        loss = self.log_average(f"{stage}_loss", *self._score(scores, targets, lengths, mask), dataloader_idx)
        f1 = partial(ChunkF1, self.labels)
        self.log_over_split(f"{stage}_f1", f1, dataloader_idx, scores.argmax(-1), targets, mask)
        return loss
