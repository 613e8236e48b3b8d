"""A model that tags the words of an utterance: which slot does each of them fill?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.metrics import ChunkF1
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
        cell: ``"rnn"``, ``"irnn"``, ``"ugrnn"``, ``"gru"``, ``"lstm"`` or ``"intersection"``.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        embedding_size: Features per word.
        hidden_size: Units or channels per layer (and direction).
        num_layers: Number of layers.
        bidirectional: Read the utterance in both directions (convolutions: look to both sides).
        dropout: Dropout between the layers (inside a convolutional core) and before the scores.
        input_dropout: Dropout of the embedding's features. A certificate that covers training must hold for every
            mask; for a stable gated model 0 is the better choice.
        unknown_rate: Fraction of the words that are replaced by the unknown one in training. What the model has not
            seen it then judges by what stands around it.
        window: None for a recurrent model; k for the truncated, feed-forward one.
        kernel_size: Of a convolutional core; None for its default.
        learning_rate: Of the default optimizer, Adam.

    Raises:
        MisconfigurationException: Naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        vocab_size: int,
        labels: Sequence[str],
        *,
        cell: str = "lstm",
        core: str | None = None,
        embedding_size: int = 100,
        hidden_size: int = 100,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        unknown_rate: float = 0.05,
        window: int | None = None,
        kernel_size: int | None = None,
        learning_rate: float = 1e-3,
    ) -> None:
        checks.integer("vocab_size", vocab_size)
        checks.integer("embedding_size", embedding_size)
        checks.number("input_dropout", input_dropout, "[0, 1)")
        checks.number("unknown_rate", unknown_rate, "[0, 1)")
        if isinstance(labels, str) or not labels:
            raise MisconfigurationException(f"`labels` must name every label id. Got {labels!r}.")
        super().__init__(
            embedding_size,
            len(labels),
            cell=cell,
            core=core,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            window=window,
            kernel_size=kernel_size,
            learning_rate=learning_rate,
        )
        self.save_hyperparameters()
        self.labels = tuple(labels)
        self.unknown_rate = unknown_rate
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.input_dropout = nn.Dropout(input_dropout)

    def forward(self, words: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores of the labels, ``(batch, time, labels)``.

        Args:
            words: Ids, ``(batch, time)``.
            lengths: Of padded utterances, on the CPU, ``(batch,)``; None if all are equally long.
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
        key = f"{stage}_f1_{dataloader_idx}"
        if key not in self.averages:
            self.averages[key] = ChunkF1(self.labels).to(self.device)
        f1 = cast(ChunkF1, self.averages[key])
        f1.update(scores.argmax(-1), targets, mask)
        self.log(f"{stage}_f1", f1, metric_attribute=f"averages.{key}", prog_bar=True)
        return loss
