"""Projections after training steps, on weights that a real training moves, against the textbook's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Comparison, compared, duration
from benchmarks.training import WARM_UP, training
from lightning_stable.linalg import Factors, quadratic_factors, quadratic_form, quadratic_norm
from lightning_stable.recurrence import find_recurrences
from lightning_stable.stability.inputs.resolve import resolve_sources
from lightning_stable.stability.projection.clip_newton_schulz import clip_by_products
from lightning_stable.stability.projection.clip_subspace import MIN_UNITS, SubspaceClip
from lightning_stable.stability.projection.project import Constraint, apply_updates, propose_updates
from lightning_stable.stability.projection.sets import clip_singular_values

SIZES = (128, 256, 512)
_RATE = 0.99


def svd_clamp(weight: Tensor, bound: float) -> Tensor:
    """``U min(S, bound) V^T``: return the textbook projection."""
    left, values, right = torch.linalg.svd(weight)
    clamped: Tensor = (left * values.clamp(max=bound)) @ right
    return clamped


def spectral(sizes: tuple[int, ...] = SIZES, device: str = "cpu", steps: int = 30) -> Iterator[Comparison]:
    """Time the clipping of singular values in a closed loop: each method adds the updates to what it left itself.

    Errors are the largest distance from the same loop in float64, relative to the weights.
    """
    for size in sizes:
        subspace = SubspaceClip()
        methods: dict[str, Callable[[Tensor], Tensor]] = {
            "gram eigh": lambda w: clip_singular_values(w, _RATE, reading=True),
            "chebyshev": lambda w, clip=subspace: clip(w[None], _RATE)[0],  # type: ignore[misc]
            "products": lambda w: clip_by_products(w[None], _RATE)[0],
        }
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        errors = dict.fromkeys(methods, 0.0)
        start, updates = _updates(size, steps, device)
        current, reference = dict.fromkeys(methods, start), start.double()
        store = current.__setitem__
        for update in updates:
            reference = clip_singular_values(reference + update.double(), _RATE)
            for name, method in methods.items():
                moved = current[name] + update
                theirs = duration(lambda w=moved: svd_clamp(w, _RATE), device)  # type: ignore[misc]
                ours = duration(lambda w=moved, m=method, n=name, s=store: s(n, m(w)), device)  # type: ignore[misc]
                pairs[name].append((theirs, ours))
                distance = (current[name].double() - reference).norm() / reference.norm()
                errors[name] = max(errors[name], distance.item())
        for name in methods:
            # The first call loads what is loaded once, and the subspace begins with a whole decomposition.
            yield compared(f"rnn l2 {name}", size, device, "svd clamp", pairs[name][1:], errors[name])


def quadratic(sizes: tuple[int, ...] = SIZES, device: str = "cpu", steps: int = 30) -> Iterator[Comparison]:
    """Time a clip in a frozen quadratic form against one of the singular values, in closed loops of the same updates.

    Errors are by how much rates end above the target, in the frozen form in float64.
    """
    for size in sizes:
        start, updates = _updates(size, steps, device)
        witness = quadratic_form(start.double(), _RATE)
        factors = Factors(*(part[None].to(start) for part in quadratic_factors(witness)))
        current = {"l2": start[None], "full": start[None]}
        methods = {"l2": (_clip(size, device), None), "full": (_clip(size, device), factors)}

        def advance(name: str, update: Tensor, state: dict[str, Tensor] = current, how: Any = methods) -> None:
            clip, form = how[name]
            state[name] = clip(state[name] + update, _RATE, form)

        pairs, error = [], 0.0
        for update in updates:
            times = [duration(lambda n=name, u=update, go=advance: go(n, u), device) for name in methods]  # type: ignore[misc]
            pairs.append((times[0], times[1]))
            error = max(error, float(quadratic_norm(current["full"][0].double(), witness)) / _RATE - 1)
        yield compared("rnn full", size, device, "rnn l2", pairs[1:], error)


def _clip(size: int, device: str) -> Callable[[Tensor, float, Factors | None], Tensor]:
    """Return what the projection after a step uses for this size."""
    if device != "cpu":
        return clip_by_products
    if size >= MIN_UNITS:
        return SubspaceClip()
    return lambda weight, bound, factors: clip_singular_values(weight, bound, reading=True, factors=factors)


def _updates(size: int, steps: int, device: str) -> tuple[Tensor, list[Tensor]]:
    """Return recurrent weights, and what the optimizer adds to them at every step of a projected training."""
    updates: list[Tensor] = []
    before: Tensor | None = None
    start: Tensor | None = None
    for step, (model, projector) in enumerate(
        islice(training("rnn", size, Constraint(_RATE), device), WARM_UP + steps)
    ):
        weight = model.core.get_parameter("weight_hh_l0").detach()
        if before is not None and step >= WARM_UP:
            updates.append(weight - before)
        projector.project(strict=False)
        before = weight.clone()
        start = before if step == WARM_UP - 1 else start
    assert start is not None
    return start, updates


def gated(sizes: tuple[int, ...] = SIZES, device: str = "cpu", steps: int = 20) -> Iterator[Comparison]:
    """Time the projection after a step of a gated model, against the plain projection without memory.

    Errors are largest distances of recurrent weights from the plain projection in float64, relative to the weights.
    """
    for cell in ("lstm", "gru"):
        for method in ("shares", "euclidean", "rescale"):
            for size in sizes:
                constraint = Constraint(_RATE, method=method)
                pairs, error = [], 0.0
                for step, (model, projector) in enumerate(islice(training(cell, size, constraint, device), 2 + steps)):
                    plain, wide = copy.deepcopy(model), copy.deepcopy(model).double()
                    theirs = duration(_plain(plain, constraint), device)
                    ours = duration(lambda p=projector: p.project(strict=False), device)  # type: ignore[misc]
                    if step < 2:
                        continue
                    pairs.append((theirs, ours))
                    _plain(wide, constraint)()
                    expected = wide.core.get_parameter("weight_hh_l0")
                    distance = (model.core.get_parameter("weight_hh_l0").double() - expected).norm() / expected.norm()
                    error = max(error, distance.item())
                yield compared(f"{cell} {method}", size, device, "plain float32", pairs, error)


def _plain(model: torch.nn.Module, constraint: Constraint) -> Callable[[], None]:
    recurrences = find_recurrences(model)
    sources = resolve_sources(model, recurrences, None, True)
    return lambda: apply_updates(propose_updates(recurrences, sources, constraint, strict=False, training=True))


def projection(sizes: tuple[int, ...] = SIZES, device: str = "cpu") -> Iterator[Comparison]:
    """Time every method."""
    yield from spectral(sizes, device)
    yield from quadratic(sizes, device)
    yield from gated(sizes, device)
