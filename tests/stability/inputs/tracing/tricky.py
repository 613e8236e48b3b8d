"""Models written to fool the derivation, and how they are run: as their author would run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_stable.stability import FiniteSet
from lightning_stable.stability.inputs.derive import derive

VOCAB, N, UNITS = 7, 4, 5
X = torch.randint(VOCAB, (2, 3), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Parts to build from. The table is in [0.5, 1], so that whatever is scaled or rounded leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.loud = nn.Embedding(VOCAB, N), nn.Embedding(VOCAB, N)
        nn.init.uniform_(self.emb.weight, 0.5, 1.0)
        nn.init.constant_(self.loud.weight, 5.0)
        self.drop, self.core, self.head = nn.Dropout(0.0), nn.GRU(N, UNITS, batch_first=True), nn.Linear(UNITS, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.kept, self.history = 0, None, []  # type: int, Any, list[Any]
        self.table, self.settings, self.array = {"calls": 0}, SimpleNamespace(calls=0), np.zeros(1)
        self.plain = torch.ones(2)


@dataclass
class Case:
    """A model, how it is prepared and run, and why a set may be derived all the same."""

    forward: Callable[..., Any]
    prepare: Callable[[Any], Any]
    runs: tuple[Callable[[Any], Any], ...]
    limit: str | None
    bases: tuple[type, ...]

    def build(self) -> Any:
        torch.manual_seed(0)
        model = type("Tricky", self.bases, {"forward": self.forward})()
        self.prepare(model)
        return model


def once(m: Any) -> Any:
    return m(X)


class Cases(dict[str, Case]):
    """The cases of a file, by name."""

    def add(
        self,
        name: str,
        *runs: Callable[[Any], Any],
        prepare: Callable[[Any], Any] = lambda m: None,
        limit: str | None = None,
        bases: tuple[type, ...] = (Base,),
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator of a ``forward`` that fools a trace."""

        def register(forward: Callable[..., Any]) -> Callable[..., Any]:
            assert name not in self
            self[name] = Case(forward, prepare, runs or (once, once, once), limit, bases)
            return forward

        return register


def plain(self: Any, x: Tensor) -> Any:
    return self.head(self.core(self.drop(self.emb(x)))[0])


def scaled_output(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 5


class Plain(Base):
    forward = plain


def often(m: Any) -> None:
    for _ in range(40):
        m(X)


def seen_by_core(model: Any, case: Case) -> list[Any]:
    """What reaches the recurrence when the model runs."""
    seen: list[Any] = []
    own = nn.GRU.forward

    def recording(self: Any, input: Tensor, *args: Any) -> Any:
        seen.append(input.detach().clone() if isinstance(input, Tensor) else input)
        return own(self, input, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.GRU, "forward", recording)
        for run in case.runs:
            run(model)
    return seen


def check(case: Case) -> None:
    """No set of a model is left that was derived, unless that is a documented limit; deriving leaves nothing behind."""
    model = case.build()
    table, attributes = model.emb.weight.detach().clone(), dict(vars(model))
    seed = torch.get_rng_state()
    naive, derivation = FiniteSet(table), derive(model)
    if "core" in derivation.sets:
        assert derivation.sets["core"].guarantee == "derived"
        naive_or_derived: Any = derivation.sets["core"]
        if isinstance(naive_or_derived, FiniteSet):
            naive_or_derived = FiniteSet(naive_or_derived.points.detach().clone())
    else:
        naive_or_derived = naive
    # Deriving has left nothing behind.
    assert (model.calls, model.history, model.table["calls"], model.settings.calls) == (0, [], 0, 0)
    assert model.plain.tolist() == [1.0, 1.0]
    assert model.array.tolist() == [0.0]
    assert torch.equal(model.emb.weight, table)
    assert all(p.requires_grad and not vars(p) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), seed)
    assert vars(model).keys() == attributes.keys()
    assert all(vars(model)[name] is value for name, value in attributes.items())
    left = max(naive_or_derived.excess(inputs).item() for inputs in seen_by_core(model, case))
    assert left > 1e-3, "the case is not tricky"
    assert ("core" in derivation.sets) == (case.limit is not None), derivation
    assert ("core" in derivation.reasons) == (case.limit is None)
