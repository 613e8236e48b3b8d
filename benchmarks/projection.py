"""Projections after a training step: against an SVD clamp, and as a share of the step itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Comparison, interleave
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability.inputs import resolve_sources
from lightning_stable.stability.project import Constraint, apply_updates, propose_updates
from lightning_stable.stability.projections import clip_singular_values

_VOCABULARY, _BATCH, _TIME = 10_000, 20, 35


def clip_against_svd(sizes: tuple[int, ...] = (128, 256, 512)) -> Iterator[Comparison]:
    """``clip_singular_values`` against a clamp of ``torch.linalg.svd``, in float32, on weights just outside."""
    for size in sizes:
        torch.manual_seed(size)
        inside = svd_clamp(torch.randn(size, size) / size**0.5 * 1.2, 0.99)
        weight = inside + 1e-3 * torch.randn(size, size).sign()
        reference = svd_clamp(weight.double(), 0.99)
        error = ((clip_singular_values(weight, 0.99).double() - reference).norm() / reference.norm()).item()
        times = interleave(lambda w=weight: svd_clamp(w, 0.99), lambda w=weight: clip_singular_values(w, 0.99))  # type: ignore[misc]
        yield Comparison("rnn l2 clip", size, "cpu", "svd clamp", *times, times[0] / times[1], error)


def svd_clamp(weight: Tensor, bound: float) -> Tensor:
    """The textbook projection."""
    left, values, right = torch.linalg.svd(weight)
    clamped: Tensor = (left * values.clamp(max=bound)) @ right
    return clamped


class WordModel(nn.Module):
    """Embedding, one recurrent layer, decoder."""

    def __init__(self, cell: type[nn.RNNBase], size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, size)
        self.core = cell(size, size, batch_first=True)  # type: ignore[call-arg, arg-type]
        self.decoder = nn.Linear(size, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(batch, time, vocabulary)``."""
        logits: Tensor = self.decoder(self.core(self.embedding(tokens))[0])
        return logits


def share_of_a_step(sizes: tuple[int, ...] = (200, 512)) -> Iterator[Comparison]:
    """A training step of a word model (vocabulary 10k, batch 20, 35 steps) against the same step with projection."""
    for cell in (nn.RNN, nn.LSTM, nn.GRU):
        for size in sizes:
            torch.manual_seed(0)
            model = WordModel(cell, size)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            recurrences, constraint = find_recurrences(model), Constraint(0.99)
            sources = resolve_sources(model, recurrences, None)
            tokens = torch.randint(_VOCABULARY, (_BATCH, _TIME + 1))

            def step(
                model: WordModel = model, optimizer: torch.optim.Adam = optimizer, tokens: Tensor = tokens
            ) -> None:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

            def projected_step(step=step, recurrences=recurrences, sources=sources, constraint=constraint) -> None:  # type: ignore[no-untyped-def]
                step()
                apply_updates(propose_updates(recurrences, sources, constraint, strict=False))

            apply_updates(propose_updates(recurrences, sources, constraint, strict=True))
            plain, projected = interleave(step, projected_step, seconds=6)
            name = f"{cell.__name__.lower()} step with projection"
            yield Comparison(name, size, "cpu", "plain step", plain, projected, plain / projected, 0.0)
