"""Which input set each recurrence has: given, derived, bounded by the layer below, or observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability.inputs.derive import derive_input_sets
from lightning_stable.stability.inputs.sets import Box, InputSet, Recorded, as_input_set

Sources = dict[str, InputSet]


def resolve_sources(
    model: nn.Module,
    recurrences: Sequence[Recurrence],
    input_bound: Any,
    training: bool | None = None,
    state_bound: float = 1.0,
) -> Sources:
    """Input sets by the name of a recurrent module or of one of its layers.

    Args:
        model: The whole model; sets are derived from its forward graph where none is given.
        recurrences: Its recurrences.
        input_bound: None; a number or an input set for the first layer of every recurrent module; or a mapping from
            module names (``"core"``) or layer names (``"core.l1"``) to those.
        training: Whether dropout before a recurrence is active; None asks each layer.
        state_bound: States given to a recurrence have entries of at most this size.

    Raises:
        ValueError: If a key of the mapping names nothing, or a value is not a bound.
    """
    if isinstance(input_bound, Mapping):
        names = {r.name for r in recurrences} | {r.module_name for r in recurrences}
        for key in input_bound:
            if key not in names:
                raise ValueError(f"`input_bound` names no recurrence. Got key {key!r}; there are {sorted(names)}.")
        given = {key: as_input_set(value) for key, value in input_bound.items()}
        _check_features(recurrences, given)
        return derive_input_sets(model, training, state_bound) | given
    if input_bound is not None:
        everywhere = as_input_set(input_bound)
        given = {r.module_name: everywhere for r in recurrences}
        _check_features(recurrences, given)
        return given
    return derive_input_sets(model, training, state_bound) if any(r.needs_drive for r in recurrences) else {}


def _check_features(recurrences: Sequence[Recurrence], sources: Sources) -> None:
    for recurrence in (r for r in recurrences if r.needs_drive):
        name = recurrence.name if recurrence.name in sources or recurrence.layer else recurrence.module_name
        if name in sources and sources[name].features not in (None, recurrence.input_size):
            raise ValueError(
                f"`input_bound` of {name!r} must be for {recurrence.input_size} features. Got one for "
                f"{sources[name].features}: {sources[name].describe()}."
            )


class LayerInputs:
    """Walks the recurrences in order and hands each its input set; layers above the first read the layer below.

    Args:
        sources: From :func:`resolve_sources`.
        state_bound: Admissible states have entries of at most this size.
        training: Whether dropout between layers is active; None asks each module.
    """

    def __init__(self, sources: Sources, state_bound: float, training: bool | None = None) -> None:
        self._sources, self._state_bound, self._training = sources, state_bound, training
        self._outputs: dict[tuple[str, int], list[tuple[Tensor | None, str]]] = {}

    def input_set(self, recurrence: Recurrence) -> InputSet | None:
        """The input set of the recurrence, or None if nothing is known."""
        if recurrence.name in self._sources:
            return self._sources[recurrence.name]
        if recurrence.layer == 0:
            return self._sources.get(recurrence.module_name)
        below = self._outputs[recurrence.module_name, recurrence.layer - 1]
        bounds = [bound for bound, _ in below]
        if any(bound is None for bound in bounds):
            return None
        high = torch.cat([bound for bound in bounds if bound is not None])
        guaranteed = all(guarantee == "guaranteed" for _, guarantee in below)
        box = (
            Box(-high, high, label="the layer below", checked=False)
            if guaranteed
            else Recorded(-high, high, checked=False)
        )
        # The module's own dropout between layers divides by 1 - p, in training only.
        training = recurrence.module.training if self._training is None else self._training
        return box.dropped(recurrence.input_dropout) if training and 0 < recurrence.input_dropout < 1 else box

    def record(
        self, recurrence: Recurrence, weights: Mapping[str, Tensor], inputs: InputSet | None, drive: Interval | None
    ) -> None:
        """Remember the output bound of a recurrence for the layer above it."""
        bound, guarantee = recurrence.output_bound(weights, None, self._state_bound), "guaranteed"
        if inputs is not None and drive is not None and (bound is None or inputs.guarantee == "guaranteed"):
            bound, guarantee = recurrence.output_bound(weights, drive, self._state_bound), inputs.guarantee
        self._outputs.setdefault((recurrence.module_name, recurrence.layer), []).append((bound, guarantee))


def drive_of(recurrence: Recurrence, inputs: InputSet | None, weights: Mapping[str, Tensor]) -> Interval | None:
    """Interval of ``driven_rows @ x`` over the set."""
    return None if inputs is None else inputs.drive(recurrence.driven_rows(weights))


def leading_drive_of(recurrence: Recurrence, inputs: InputSet | None, weights: Mapping[str, Tensor]) -> Interval | None:
    """:func:`drive_of` at a fraction of the cost: only the leading rows, the whole line for the others.

    Valid for every input of the set, and a little wider: what is projected with it is inside the set.
    """
    if inputs is None:
        return None
    if len(recurrence.driven_rows(weights)) > len(weights["weight_ih"]):  # outputs are bounded by all of them
        return drive_of(recurrence, inputs, weights)
    rows, drive = recurrence.leading_rows(), unbounded_drive(weights)
    drive.low[rows], drive.high[rows] = inputs.drive(weights["weight_ih"][rows])
    return drive


def unbounded_drive(weights: Mapping[str, Tensor]) -> Interval:
    """The whole line for every row of ``weight_ih``."""
    high = torch.full_like(weights["weight_ih"][:, 0], torch.inf)
    return Interval(-high, high)
