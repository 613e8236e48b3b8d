"""What it costs to check the premises of a certificate at every forward, against a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.timing import Comparison, compared, duration
from lightning_stable.models import LanguageModel
from lightning_stable.stability import Constraint
from lightning_stable.stability.inputs.watch import InputMonitor
from lightning_stable.stability.projection.projector import Projector

# Cell, units, features, vocabulary: the demo's model, and a word model with a vocabulary of Penn Treebank's size.
CASES = (("lstm", 128, 200, 1750), ("rnn", 512, 200, 10_000), ("lstm", 512, 200, 10_000))
_BATCH, _TIME = 20, 35


def premises(
    cases: tuple[tuple[str, int, int, int], ...] = CASES, device: str = "cpu", runs: int = 15
) -> Iterator[Comparison]:
    """Time a step (forward, backward and Adam) and the checks of one forward in turn: 1 / ratio is their share.

    ``exact`` compares the products of inputs and weights as well, as it is done where a log line is due.
    """
    for cell, units, features, vocabulary in cases:
        monitor, step, check = _sides(cell, units, features, vocabulary, device)
        for exact in (False, True):
            monitor.exact = exact
            check()
            pairs = [(duration(step, device), duration(check, device)) for _ in range(runs)]
            what = f"checks of a forward, {cell} with {vocabulary} words" + (", exact" if exact else "")
            yield compared(what, units, device, "a training step", pairs, 0.0)


def _sides(
    cell: str, units: int, features: int, vocabulary: int, device: str
) -> tuple[InputMonitor, Callable[[], None], Callable[[], None]]:
    """Return the monitor of a language model, a training step of it, and the checks of its forward."""
    torch.manual_seed(0)
    model = LanguageModel(vocabulary, cell=cell, hidden_size=units, embedding_size=features, input_dropout=0.0)
    model = model.to(device)
    tokens = torch.randint(vocabulary, (_BATCH, _TIME + 1), device=device)
    optimizer = torch.optim.Adam(model.parameters())
    monitor = Projector(model, Constraint(0.99)).monitor
    ((name, module),) = monitor.modules.items()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        logits = logits[0] if isinstance(logits, tuple) else logits
        torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        optimizer.step()

    step()
    hook.remove()
    return monitor, step, lambda: monitor._watch(name, module, *calls[0])
