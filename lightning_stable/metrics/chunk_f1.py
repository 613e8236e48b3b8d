"""Precision, recall and F1 of the chunks in BIO tag sequences, by the rules of conlleval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

Chunks = Callable[[list[list[str]]], list[tuple[str, int, int]]]


def _seqeval() -> Chunks:
    """Return seqeval's extraction of chunks ``(type, first, last)`` from sequences laid end to end."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise ModuleNotFoundError("Chunk scores need seqeval: pip install 'lightning-stable[slots]'.") from error
    chunks: Chunks = get_entities
    return chunks


def bio_labels(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the tag ids, each ``O``, ``B-x`` or ``I-x`` with a type x.

    Raises:
        TypeError: If the labels are not a sequence of strings.
        ValueError: If there is none, or one has another form.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise TypeError(f"`{name}` must name every tag id. Got {labels!r}.")
    if not labels:
        raise ValueError(f"`{name}` must name every tag id. Got {labels!r}.")
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"`{name}` must be 'O', 'B-x' or 'I-x' with a type x. Got {label!r}.")
        if label != "O" and not (label.startswith(("B-", "I-")) and len(label) > 2):
            raise ValueError(f"`{name}` must be 'O', 'B-x' or 'I-x' with a type x. Got {label!r}.")
    return tuple(labels)


class ChunkScore(Metric):
    """Counts the chunks in the predictions, in the targets, and in both; a base class.

    A chunk is correct if its type, its first and its last tag are. By the rules of conlleval, every ``B-x`` begins a
    chunk, and so does an ``I-x`` that does not continue one of its own type; none reaches over the end of a sequence.
    Counts are summed over all batches and devices. :class:`ChunkF1` and its siblings compute a score from the counts,
    and share them in a :class:`torchmetrics.MetricCollection`.

    Args:
        labels: The name of each tag id: ``O``, ``B-x`` or ``I-x``. A target that no training example has needs an id as
            well, to count as a chunk that was missed.
        kwargs: The arguments of :class:`torchmetrics.Metric`.

    Raises:
        ModuleNotFoundError: If seqeval is not installed; the extra ``slots`` brings it.
        TypeError: If ``labels`` are not a sequence of strings.
        ValueError: If there is no label, or one has another form.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    predicted: Tensor
    gold: Tensor

    def __init__(self, labels: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = bio_labels("labels", labels)
        self._chunks = _seqeval()
        for count in ("correct", "predicted", "gold"):
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of sequences.

        Args:
            predictions: Tag ids, ``(batch, time)``.
            targets: Tag ids, ``(batch, time)``.
            mask: False at padding, ``(batch, time)``, bool, whose ids may be anything; None if there is none.

        Raises:
            ValueError: Naming the argument that has a wrong shape, or an id without a label.
        """
        if mask is None:
            mask = torch.ones_like(targets, dtype=torch.bool)
        if targets.dim() != 2 or not predictions.shape == targets.shape == mask.shape or mask.dtype != torch.bool:
            got = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (predictions, targets, mask))
            raise ValueError(
                f"`predictions`, `targets` and `mask` must have one shape (batch, time), `mask` in bool. Got {got}."
            )
        kept = mask.cpu()
        predicted, gold = (
            set(self._chunks(self._tags(name, ids.cpu(), kept)))
            for name, ids in (("predictions", predictions), ("targets", targets))
        )
        self.correct += len(predicted & gold)
        self.predicted += len(predicted)
        self.gold += len(gold)

    def _tags(self, name: str, ids: Tensor, mask: Tensor) -> list[list[str]]:
        wrong = ids[mask & ((ids < 0) | (ids >= len(self.labels)))]
        if wrong.numel():
            raise ValueError(f"`{name}` must be ids of the {len(self.labels)} labels. Got {wrong[0].item()}.")
        return [[self.labels[i] for i in row[kept].tolist()] for row, kept in zip(ids, mask, strict=True)]


class ChunkPrecision(ChunkScore):
    """Fraction of the predicted chunks that are correct, 0 if there is none; see :class:`ChunkScore`."""

    def compute(self) -> Tensor:
        """Return the precision in [0, 1], a scalar."""
        return self.correct / self.predicted.clamp(min=1)


class ChunkRecall(ChunkScore):
    """Fraction of the chunks in the targets that were found, 0 if there is none; see :class:`ChunkScore`."""

    def compute(self) -> Tensor:
        """Return the recall in [0, 1], a scalar."""
        return self.correct / self.gold.clamp(min=1)


class ChunkF1(ChunkScore):
    """Harmonic mean of :class:`ChunkPrecision` and :class:`ChunkRecall`, 0 if no chunk is correct; see there."""

    def compute(self) -> Tensor:
        """Return F1 in [0, 1], a scalar."""
        return 2 * self.correct / (self.predicted + self.gold).clamp(min=1)
