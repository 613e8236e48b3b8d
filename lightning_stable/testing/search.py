"""Gradient ascent on what a certificate says is bounded: in float64, from many starts side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Contraction, State
from lightning_stable.stability.inputs.resolve import Layer
from lightning_stable.stability.inputs.sets import ActiveEntries, Box, InputSet, L2Ball

# The smallest distance of a pair: its ratio is exact to about 1e-16 / NEAR.
NEAR = 1e-3
_RATE = 0.05  # of Adam, for variables between -1 and 1


def contraction_ratio(layer: Layer, contraction: Contraction, *, pairs: int, steps: int, seed: int) -> float:
    """Return the largest expansion of a distance that one step of the adapter was found to make.

    Args:
        layer: The layer, with its input set and its weights.
        contraction: The certificate whose distance is measured.
        pairs: Pairs of states, searched at once.
        steps: Steps of the ascent.
        seed: Seed of the starts.
    """
    box = _box(layer)
    free = _starts([*map(len, box), *map(len, box), layer.recurrence.input_size], pairs, seed)
    own, member = len(box), _members(layer)
    near = torch.logspace(math.log10(NEAR), math.log10(2), pairs, dtype=torch.float64)[:, None]

    def ratio() -> Tensor:
        first = tuple(size * value for size, value in zip(box, free, strict=False))
        other = tuple(
            size * (value + near * way).clamp(-1, 1) for size, value, way in zip(box, free, free[own:], strict=False)
        )
        inputs = member(free[-1])
        before = contraction.distance(first, other)
        after = contraction.distance(_step(layer, inputs, first), _step(layer, inputs, other))
        apart = torch.cat([(a - b).abs() for a, b in zip(first, other, strict=True)], 1).amax(1) > NEAR / 10
        return torch.where(apart, after / before.where(apart, 1.0), 0.0)

    return float(_ascend(ratio, free, steps).max())


def comparison_ratio(layer: Layer, *, pairs: int, steps: int, seed: int) -> float:
    """Return the largest share of what the comparison map allows, over the entries of the state, that a step took."""
    recurrence, box = layer.recurrence, _box(layer)
    comparison = recurrence.comparison(layer.weights, layer.drive, layer.state_bound)
    assert comparison is not None
    free = _starts([*map(len, box), *map(len, box), *[recurrence.input_size] * 2], pairs, seed)
    member = _members(layer)
    near = torch.logspace(math.log10(NEAR), 0, pairs, dtype=torch.float64)[:, None]

    def share() -> Tensor:
        first = tuple(size * value for size, value in zip(box, free, strict=False))
        other = tuple(
            start + near * (size * value - start)
            for start, size, value in zip(first, box, free[len(box) :], strict=False)
        )
        here, there = member(free[-2]), member(free[-1])
        there = here + near.flip(0) * (there - here)
        limit = comparison(tuple((a - b).abs() for a, b in zip(first, other, strict=True)), (here - there).abs())
        after = zip(_step(layer, here, first), _step(layer, there, other), strict=True)
        change = torch.cat([(a - b).abs() for a, b in after], 1)
        # What rounding makes of a bound near 0 is no violation.
        return (change / (torch.cat(limit, 1) + 1e-12)).amax(1)

    return float(_ascend(share, free, steps).max())


def _step(layer: Layer, inputs: Tensor, state: State) -> State:
    """Step from the parts of a state of which a certificate speaks to the same parts."""
    return layer.recurrence.step(inputs, layer.recurrence.full_state(state, inputs))[: len(state)]


def _box(layer: Layer) -> State:
    """Bounds on the states to search in; where nothing is known of them, every state is admissible."""
    recurrence, state_bound = layer.recurrence, layer.state_bound
    box = recurrence.state_box(layer.weights, layer.drive if recurrence.needs_drive else None, state_bound)
    if box is None:
        zero = recurrence.initial_state(torch.zeros(recurrence.input_size, dtype=torch.float64))
        return tuple(torch.full_like(part, max(3.0, state_bound)) for part in zero[: recurrence.state_parts])
    return tuple(part.clamp(max=1e6) for part in box)


def _members(layer: Layer) -> Callable[[Tensor], Tensor]:
    """Return a map from vectors with entries in [-1, 1] to members of the input set, as smooth as the set allows."""
    inputs, weight = layer.inputs, layer.weights["weight_ih"]
    match inputs:
        case None:
            return lambda free: 10 * free
        case Box():
            ends = inputs.box(weight.shape[1], weight)
            return lambda free: (ends.low + ends.high) / 2 + (ends.high - ends.low) / 2 * free
        case L2Ball():
            return lambda free: inputs.radius * free / free.norm(dim=1, keepdim=True).clamp(min=1)
        case ActiveEntries():
            return lambda free: _active(inputs, free)
        case InputSet():
            points = inputs.members(weight)
            points = torch.cat((inputs.maximizer(weight), inputs.maximizer(-weight))) if points is None else points
            return lambda free: points[torch.arange(len(free)) % len(points)]


def _active(inputs: ActiveEntries, free: Tensor) -> Tensor:
    entries = free.clamp(min=0)
    kept = entries.topk(min(inputs.count, free.shape[1]), dim=1).indices
    return inputs.height * torch.zeros_like(entries).scatter(1, kept, entries.gather(1, kept))


def _starts(sizes: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Return variables between -1 and 1, half of them in the corners."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.arange(count) % 2 == 0)[:, None]
    found = []
    for size in sizes:
        value = 2 * torch.rand(count, size, generator=generator, dtype=torch.float64) - 1
        found.append(torch.where(corner, value.sign(), value).requires_grad_())
    return found


def _ascend(value: Callable[[], Tensor], free: Sequence[Tensor], steps: int) -> Tensor:
    """Return the largest values that were met, one for each start."""
    optimizer, best = torch.optim.Adam(free, lr=_RATE), torch.zeros(len(free[0]), dtype=torch.float64)
    for _ in range(steps):
        found = value()
        best = best.maximum(found.detach())
        optimizer.zero_grad()
        (-(found + 1e-12).log().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for variable in free:
                variable.clamp_(-1, 1)
    return best
