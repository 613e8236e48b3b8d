"""Weights as a real training moves them: a language model on the text every Python carries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.models import LanguageModel
from lightning_stable.stability.projection.project import Constraint
from lightning_stable.stability.projection.projector import Projector

# Steps after which singular values have gathered at the bound.
WARM_UP = 10


@cache
def _data() -> PythonDocsDataModule:
    data = PythonDocsDataModule()
    data.prepare_data()
    data.setup("fit")
    return data


def vocabulary() -> int:
    """Return the number of words of the text."""
    return len(_data().vocab)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and targets, each of shape ``(batch, time)``, epoch after epoch."""
    while True:
        yield from _data().train_dataloader()


def training(
    cell: str, units: int, constraint: Constraint, device: str = "cpu"
) -> Iterator[tuple[LanguageModel, Projector]]:
    """Train and yield after every optimizer step, with the weights not yet projected; the caller projects them.

    Dropout before the recurrence is off, so that a gated model has the embedding table as its input set.
    """
    data = _data()
    torch.manual_seed(0)
    model = LanguageModel(len(data.vocab), cell=cell, hidden_size=units, input_dropout=0.0).to(device)
    projector = Projector(model, constraint)
    projector.project(strict=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=model.learning_rate)
    while True:
        state: Tensor | tuple[Tensor, ...] | None = None
        for tokens, targets in data.train_dataloader():
            logits, state = model(tokens.to(device), state)
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
            optimizer.zero_grad()
            loss = cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            yield model, projector
