"""Inputs to trace and to check a model with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_stable.recurrence import recurrences_of
from lightning_stable.recurrence.registry import is_recurrent

_BATCH, _TIME = 8, 16


def example_for(model: nn.Module) -> Tensor:
    """Return a batch of sequences for a recurrent layer or one of :mod:`lightning_stable.models`; always the same one.

    Raises:
        ValueError: If the model is another one.
    """
    generator = torch.Generator().manual_seed(0)
    if is_recurrent(model):
        return torch.randn(_BATCH, _TIME, recurrences_of(model)[0].input_size, generator=generator)
    # Late: layers can be exported without Lightning.
    from lightning_stable.models import LanguageModel, MusicModel, SequenceRegressor, SlotTagger

    if isinstance(model, (LanguageModel, SlotTagger)):
        return torch.randint(model.embedding.num_embeddings, (_BATCH, _TIME), generator=generator)
    if isinstance(model, MusicModel):
        return (torch.rand(_BATCH, _TIME, model.head.out_features, generator=generator) < 0.1).float()
    if isinstance(model, SequenceRegressor):
        return torch.randn(_BATCH, _TIME, model.input_size, generator=generator)
    raise ValueError(
        "`example` must be a batch of inputs of the model, unless it is a recurrent layer or one of "
        f"lightning_stable.models. Got none for a {type(model).__name__}. With the command, --example takes a file "
        "that torch.save wrote of it."
    )


def random_batch(example: Tensor, batch: int, time: int, *, batch_first: bool, generator: torch.Generator) -> Tensor:
    """Return sequences whose steps are drawn from an example: what holds for every step of it holds for these.

    Args:
        example: Shape ``(batch, time, ...)`` or ``(time, batch, ...)``.
        batch: Number of sequences.
        time: Length of the sequences.
        batch_first: Whether the example and the result are ``(batch, time, ...)``.
        generator: The source of randomness.
    """
    steps = example.flatten(0, 1)
    drawn = steps[torch.randint(len(steps), (batch * time,), generator=generator)]
    return drawn.reshape(*((batch, time) if batch_first else (time, batch)), *steps.shape[1:])
