"""What is known about every directed layer: its input set is declared, derived, or follows from the layer below."""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.recurrence.base import Contraction, Recurrence
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.sharded import is_sharded, whole
from lightning_stable.stability.inputs.derive import derive_input_sets
from lightning_stable.stability.inputs.joint import joint_drive
from lightning_stable.stability.inputs.sets import (
    ActiveEntries,
    Box,
    InputBound,
    InputSet,
    as_input_set,
    weakest_guarantee,
)

Sources = dict[str, InputSet]
# What a layer computes once, and later walks with the same values need not compute again.
_KEPT = ("drive", "contractions")


def resolve_sources(
    model: nn.Module,
    recurrences: Sequence[Recurrence],
    input_bound: InputBound,
    training: bool | None = None,
    state_bound: float = 1.0,
) -> Sources:
    """Return input sets by the name of a recurrent module or of one of its layers.

    Args:
        model: The whole model; sets are derived from its forward graph where none is declared.
        recurrences: Its recurrences.
        input_bound: None; a number or an input set for the first layer of every recurrent module; or a mapping from
            module names (``"core"``) or layer names (``"core.l1"``) to those.
        training: Whether dropout before a recurrence is active; None asks each layer.
        state_bound: States given to a recurrence have entries of at most this size.

    Raises:
        TypeError: If a value is not a bound.
        ValueError: If a key of the mapping names nothing, or a bound is out of range.
    """
    if isinstance(input_bound, Mapping):
        if others := [key for key in input_bound if not isinstance(key, str)]:
            raise TypeError(f"`input_bound` must have the names of recurrences as keys. Got {others[0]!r}.")
        for value in input_bound.values():
            as_input_set(value)
        names = {r.name for r in recurrences} | {r.module_name for r in recurrences}
        for key in input_bound:
            if key not in names:
                raise ValueError(f"`input_bound` names no recurrence. Got key {key!r}; there are {sorted(names)}.")
        declared = {key: as_input_set(value) for key, value in input_bound.items()}
        _check_features(recurrences, declared)
        return derive_input_sets(model, training, state_bound) | declared
    if input_bound is not None:
        everywhere = as_input_set(input_bound)
        declared = {r.module_name: everywhere for r in recurrences}
        _check_features(recurrences, declared)
        return declared
    return derive_input_sets(model, training, state_bound) if any(r.needs_drive for r in recurrences) else {}


def gathered_sets(sources: Sources) -> Sources:
    """Return the sets with the present values of sharded tensors (an embedding's) in their place: a collective then."""
    return {name: _gathered(inputs) for name, inputs in sources.items()}


def _gathered(inputs: InputSet) -> InputSet:
    sharded = {name: value for name, value in vars(inputs).items() if is_sharded(value)}
    if not sharded:
        return inputs
    snapshot = copy.copy(inputs)
    vars(snapshot).update({name: whole(value) for name, value in sharded.items()})
    return snapshot


def _check_features(recurrences: Sequence[Recurrence], sources: Sources) -> None:
    """Check that declared sets are sets of inputs of their layers."""
    for recurrence in (r for r in recurrences if r.needs_drive):
        name = recurrence.name if recurrence.name in sources or recurrence.layer else recurrence.module_name
        if name in sources and sources[name].features not in (None, recurrence.input_size):
            raise ValueError(
                f"`input_bound` of {name!r} must be for {recurrence.input_size} features. Got one for "
                f"{sources[name].features}: {sources[name].describe()}."
            )
        source = sources.get(name)
        if isinstance(source, ActiveEntries) and source.count > recurrence.input_size:
            raise ValueError(
                f"`input_bound` of {name!r} must let at most all {recurrence.input_size} features be active. "
                f"Got {source.describe()}."
            )


@dataclass(frozen=True, eq=False)
class Layer:
    """One directed layer, with all that its certificate and its projection read.

    Attributes:
        recurrence: The layer's state map.
        weights: Weights by role. A projection replaces them, see :meth:`replace_weights`.
        source: The input set declared or derived for this layer, None if there is none.
        below: The layers whose outputs it reads; empty for a first layer.
        state_bound: Start states have entries of at most this size.
        training: Whether dropout in front of the layer is active.
        leading_only: Whether :attr:`drive` uses the inputs for the leading rows only.
        projected: Whether the weights are being projected; outputs are then bounded by what no projection changes,
            where that suffices.
    """

    recurrence: Recurrence
    weights: dict[str, Tensor]
    source: InputSet | None
    below: Sequence[Layer]
    state_bound: float
    training: bool
    leading_only: bool = False
    projected: bool = False

    @property
    def dropout(self) -> float:
        """The probability with which the module itself drops entries of the layer's input, 0 where it does not."""
        probability = self.recurrence.input_dropout
        return probability if self.training and probability < 1 else 0.0

    @cached_property
    def inputs(self) -> InputSet | None:
        """The input set, or None if nothing is known."""
        if self.source is not None or not self.below:
            return self.source
        bounds = [bound for bound, _ in (layer.output for layer in self.below) if bound is not None]
        if len(bounds) < len(self.below):
            return None
        high = torch.cat(bounds)
        box: InputSet = Box(-high, high, label="the layer below", checked=False)
        if self.dropout:  # the module's own between its layers, which divides by 1 - p
            box = box.dropped(self.dropout)
        box.guarantee = weakest_guarantee(layer.output[1] for layer in self.below)
        return box

    @property
    def guarantee(self) -> str:
        """What a claim that rests on the inputs is worth."""
        return "guaranteed" if self.inputs is None else self.inputs.guarantee

    @cached_property
    def drive(self) -> Interval | None:
        """Interval of ``driven_rows @ x`` over the input set, joint for cells that take it; None if nothing is known.

        With ``leading_only`` it is the whole line for all but the leading rows: valid for every input of the set, at
        a fraction of the cost, and wider.
        """
        if self.inputs is None:
            return None
        driven, weight = self.recurrence.driven_rows(self.weights), self.weights["weight_ih"]
        pairing, rows = self.recurrence.pairing(self.weights), self.recurrence.leading_rows()
        leading_only = self.leading_only and rows != slice(None)
        if pairing is not None and not leading_only:
            # The inputs of a layer above another differ between two runs, and gates pass what lies between them.
            return joint_drive(self.inputs, driven, pairing, between=bool(self.below))
        if not leading_only or len(driven) > len(weight):  # more rows than those of the gates bound the outputs
            return self.inputs.drive(driven)
        drive = unbounded_drive(self.weights)
        drive.low[rows], drive.high[rows] = self.inputs.drive(weight[rows])
        return drive

    @cached_property
    def output(self) -> tuple[Tensor | None, str]:
        """Bound on every entry of the output, None if there is none, and its guarantee."""
        bound = self.recurrence.output_bound(self.weights, None, self.state_bound)
        # What was only observed is used where nothing holds without it.
        if self.inputs is None or (bound is not None and (self.projected or self.guarantee != "guaranteed")):
            return bound, "guaranteed"
        return self.recurrence.output_bound(self.weights, self.drive, self.state_bound), self.guarantee

    def replace_weights(self, changed: Mapping[str, Tensor]) -> None:
        """Put new values in the place of some weights; the layer above then reads what follows from them."""
        if not changed:
            return
        self.weights.update({role: value.to(self.weights[role].dtype) for role, value in changed.items()})
        for name in ("output", *_KEPT):
            vars(self).pop(name, None)

    @cached_property
    def contractions(self) -> dict[str | None, Contraction]:
        """What :meth:`contraction` found so far, by norm."""
        return {}

    def contraction(self, norm: str | None, witness: Contraction | None = None) -> Contraction:
        """Return the contraction rate of the state map over the admissible states and inputs.

        Args:
            norm: The certificate.
            witness: A norm found for it before, which is checked, where the cell can do so, and not looked for again.
        """
        if witness is not None:
            checked = self.recurrence.contraction_in(self.weights, self.drive, witness, state_bound=self.state_bound)
            if checked is not None:
                return checked
        if norm not in self.contractions:
            found = self.recurrence.contraction(self.weights, self.drive, norm=norm, state_bound=self.state_bound)
            self.contractions[norm] = found
        return self.contractions[norm]


def walk_layers(
    recurrences: Sequence[Recurrence],
    sources: Sources,
    state_bound: float = 1.0,
    training: bool | None = None,
    *,
    leading_only: bool = False,
    projected: bool = False,
    weights: Callable[[Recurrence], dict[str, Tensor]] = Recurrence.weights,
    known: dict[str, dict[str, Any]] | None = None,
) -> Iterator[Layer]:
    """Yield every recurrence with what is known about it; a layer above the first reads the layer below.

    Args:
        recurrences: In the order of :func:`~lightning_stable.recurrence.find_recurrences`.
        sources: From :func:`resolve_sources`.
        state_bound: Start states have entries of at most this size.
        training: Whether dropout between layers is active; None asks each module.
        leading_only: See :class:`Layer`.
        projected: See :class:`Layer`.
        weights: Returns the weights of a recurrence; the default copies them in float64.
        known: Drives and contractions by the name of the recurrence, as earlier walks with the same values found
            them. This one adds its own. Both are those of layers that read no layer below.
    """
    layers: defaultdict[tuple[str, int], list[Layer]] = defaultdict(list)
    for recurrence in recurrences:
        name, depth = recurrence.module_name, recurrence.layer
        layer = Layer(
            recurrence,
            weights(recurrence),
            sources.get(recurrence.name, sources.get(name) if depth == 0 else None),
            layers[name, depth - 1],
            state_bound,
            recurrence.module.training if training is None else training,
            leading_only,
            projected,
        )
        layers[name, depth].append(layer)
        alone = known is not None and not leading_only and (layer.source is not None or not layer.below)
        before = known.setdefault(recurrence.name, {}) if known is not None and alone else {}
        values = list(layer.weights.values())
        vars(layer).update(before)
        yield layer
        if all(map(operator.is_, values, layer.weights.values())):  # what was found is about them
            before.update({key: vars(layer)[key] for key in _KEPT if key in vars(layer)})


def unbounded_drive(weights: Mapping[str, Tensor]) -> Interval:
    """Return the whole line for every row of ``weight_ih``."""
    high = torch.full_like(weights["weight_ih"][:, 0], torch.inf)
    return Interval(-high, high)
