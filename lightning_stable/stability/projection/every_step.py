"""The projection after every training step: it differs from the plain one only in the time it takes.

Recurrences of one shape are handled together. On a CPU, large matrices are clipped with a subspace that is carried from
step to step (:mod:`clip_subspace`); on an accelerator, with matrix products alone (:mod:`clip_newton_schulz`), so that
the host waits for no value and steps can be captured in a CUDA graph. The plain form,
:func:`project.propose_updates`, is the reference, and handles what is not covered here.

The norms ``full`` and ``tight`` are looked for, which takes longer than a step: the norm found last, the witness, is
frozen, and a projection in it costs about what one in ``l2`` or ``row`` costs. :meth:`FastProjection.refine` looks
anew; before its first call the witness is the plain norm.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_stable.linalg import Factors, QuadraticForm, quadratic_factors
from lightning_stable.recurrence.base import Contraction, GatedRecurrence, Recurrence
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.rnn import RNNRecurrence, form_of
from lightning_stable.stability.inputs.resolve import Layer, Sources, walk_layers
from lightning_stable.stability.projection.clip_newton_schulz import clip_by_products
from lightning_stable.stability.projection.clip_subspace import MIN_UNITS, SubspaceClip
from lightning_stable.stability.projection.gate_bound import GateRows, bound_gate, leave_worst_input
from lightning_stable.stability.projection.project import (
    Constraint,
    Update,
    compute_weights,
    fast_target,
    is_frozen,
    propose_update,
)
from lightning_stable.stability.projection.recurrence import Target, meet_budget
from lightning_stable.stability.projection.sets import clip_singular_values
from lightning_stable.stability.projection.worst_inputs import WorstInputs

State = dict[str, dict[str, Tensor]]
# In a state the names of witnesses begin with this; those of subspaces are names of recurrences.
_WITNESS = "witness of "
_ROW_METHODS = (None, "shares", "euclidean", "rescale")


class _Kind(NamedTuple):
    """Equal for recurrences that are handled together."""

    cell: type[Recurrence]
    shapes: tuple[Hashable, ...]
    target: Target


class FastProjection:
    """Projects after every step, and remembers what helps at the next one.

    Args:
        reading: Whether values may be read on the host.

    Attributes:
        witnesses: The norms to project in, by the name of the recurrence, for ``full`` and ``tight``.
    """

    def __init__(self, *, reading: bool) -> None:
        self.reading = reading
        self.witnesses: dict[str, Contraction] = {}
        # Of the forms of recurrences that are handled together, with the names of these.
        self._factors: dict[str, tuple[list[str], Factors]] = {}
        self._clips: dict[str, SubspaceClip] = {}
        self._restored: State = {}
        self._kinds: dict[Hashable, _Kind | None] = {}

    def propose_updates(
        self,
        recurrences: Sequence[Recurrence],
        sources: Sources,
        constraint: Constraint,
        *,
        margin: float = 0.0,
        training: bool | None = None,
    ) -> list[Update]:
        """Do as :func:`project.propose_updates` with ``strict=False``; a gate's parameter is a view of its rows."""
        # Where nothing rests on inputs nobody asks what the layers put out.
        driven = any(r.needs_drive for r in recurrences)
        kinds = {r: None if is_frozen(r) else self._kind(r, constraint, margin, driven) for r in recurrences}

        def weights(recurrence: Recurrence) -> dict[str, Tensor]:
            if kinds[recurrence] is None:
                return compute_weights(recurrence, constraint, strict=False)
            return dict(recurrence.parameters())

        groups: dict[_Kind, list[Layer]] = {}
        updates: list[Update] = []
        for layer in walk_layers(
            recurrences, sources, constraint.state_bound, training, projected=True, weights=weights
        ):
            kind = kinds[layer.recurrence]
            if kind is None or (layer.recurrence.needs_drive and layer.inputs is None):
                updates += propose_update(layer, constraint, strict=False, margin=margin)
            else:
                groups.setdefault(kind, []).append(layer)
        for kind, members in groups.items():
            gated = isinstance(members[0].recurrence, GatedRecurrence)
            updates += self._gated(members, kind.target) if gated else self._spectral(members, kind.target)
        return updates

    def refine(
        self,
        recurrences: Sequence[Recurrence],
        sources: Sources,
        constraint: Constraint,
        *,
        margin: float = 0.0,
        training: bool | None = None,
    ) -> None:
        """Look for the norms in which the present weights are to be projected; the arguments are those of a projection.

        A norm that does not hold the weights at the rate gives way to the one before, if that does better.
        """
        driven = any(r.needs_drive for r in recurrences)
        for layer in walk_layers(recurrences, sources, constraint.state_bound, training, projected=True):
            recurrence = layer.recurrence
            kind = None if is_frozen(recurrence) else self._kind(recurrence, constraint, margin, driven)
            if kind is None or (recurrence.needs_drive and layer.inputs is None):
                continue
            drive = layer.drive if recurrence.needs_drive else None
            target = kind.target
            found = recurrence.projection_witness(
                layer.weights, drive, target.rate, norm=target.norm, state_bound=target.state_bound
            )
            if found is None:
                continue
            if not found.rate <= target.rate and recurrence.name in self.witnesses:
                before = layer.contraction(target.norm, self.witnesses[recurrence.name])
                found = before if before.rate < found.rate else found
            self._keep(recurrence.name, found)
        for members, factors in self._factors.values():
            for old, new in zip(factors, self._stacked_factors(members, factors.left), strict=True):
                old.copy_(new)

    def _keep(self, name: str, witness: Contraction) -> None:
        """Keep a witness in the storage of the one before: a captured step reads it from there."""
        if name not in self.witnesses:
            self.witnesses[name] = witness
            return
        before = _packed(self.witnesses[name])
        for key, value in _packed(witness).items():
            before[key].copy_(value)

    def _kind(self, recurrence: Recurrence, constraint: Constraint, margin: float, driven: bool) -> _Kind | None:
        key = (recurrence, constraint, margin, driven)
        if key not in self._kinds:  # looked at once: shapes and types stay as they are while a model trains
            self._kinds[key] = _kind(*key)
        return self._kinds[key]

    # ------------------------------------------------------------------- rnn
    def _spectral(self, members: Sequence[Layer], target: Target) -> list[Update]:
        parameters = [member.weights["weight_hh"] for member in members]
        weight, bound = torch.stack([_compute(value) for value in parameters]), target.rate
        name = "+".join(member.recurrence.name for member in members)
        factors = self._factors_of(name, members, weight)
        if not self.reading:
            clipped = clip_by_products(weight, bound, factors)
        elif weight.shape[2] < MIN_UNITS:
            clipped = clip_singular_values(weight, bound, reading=True, factors=factors)
        else:
            if name not in self._clips:
                self._clips[name] = SubspaceClip()
                self._clips[name].load_state_dict(self._restored.pop(name, {}))
            clipped = self._clips[name](weight, bound, factors)
        return [(value, new.to(value.dtype)) for value, new in zip(parameters, clipped, strict=True)]

    def _factors_of(self, name: str, members: Sequence[Layer], weight: Tensor) -> Factors | None:
        """Return the factors of the members' forms, stacked, in the dtype of the weights; None without forms."""
        names = [member.recurrence.name for member in members]
        if not self.witnesses.keys() & set(names):
            return None
        if name not in self._factors:
            self._factors[name] = names, self._stacked_factors(names, weight)
        return self._factors[name][1]

    def _stacked_factors(self, names: Sequence[str], like: Tensor) -> Factors:
        plain = QuadraticForm.euclidean(like[0].double())
        forms = (form_of(self.witnesses[name]) if name in self.witnesses else plain for name in names)
        parts = zip(*(quadratic_factors(form) for form in forms), strict=True)
        return Factors(*(torch.stack(part).to(like) for part in parts))

    # ----------------------------------------------------------------- gated
    def _gated(self, members: Sequence[Layer], target: Target) -> list[Update]:
        first = members[0].recurrence
        assert isinstance(first, GatedRecurrence)
        assert target.gate_bound is not None
        gates, leak = len(first.gates), first.gates.index(first.leak)
        parameters = [member.weights for member in members]
        units = parameters[0]["weight_hh"].shape[0] // gates
        # Gate by gate, the units of all recurrences beside each other.
        hidden = _stacked([p["weight_hh"] for p in parameters], gates)
        norms = hidden.abs().sum(2)
        biases = {
            role: _stacked([p[role] for p in parameters], gates)
            for role in ("bias_ih", "bias_hh")
            if role in parameters[0]
        }
        worst = [
            WorstInputs(m.inputs, _compute(m.weights["weight_ih"]).view(gates, units, -1)[leak], reading=self.reading)
            for m in members
            if m.inputs is not None
        ]
        high = _joined([inputs.highest() for inputs in worst])
        before = GateRows(
            _joined([inputs.rows for inputs in worst]), hidden[leak], *(value[leak] for value in biases.values())
        )
        budget = first.leading_budget(
            {role: value.flatten() for role, value in biases.items()},
            norms,
            before.top(high, norms[leak] * target.state_bound),
            target.rate,
            state_bound=target.state_bound,
            leak_bound=target.gate_bound,
        )
        assert budget is not None
        flat, scale = {"weight_hh": hidden.flatten(0, 1)}, self._scale_of(members, hidden)
        if scale is not None:
            blocks = hidden.abs().view(gates, len(members), units, -1)
            norms = (blocks @ scale[:, :, None]).reshape(gates, -1) / scale.flatten()
        hidden = meet_budget(first, flat, norms, budget, target, scale=scale).view_as(hidden)
        before = before._replace(weight_hh=hidden[leak])
        after = self._within_gate_bound(before, high, worst, target)
        if after is not before:
            hidden[leak] = after.weight_hh
        updates: list[Update] = []
        for index, own in enumerate(parameters):
            mine = slice(index * units, (index + 1) * units)
            updates.append((own["weight_hh"], hidden[:, mine].flatten(0, 1).to(own["weight_hh"].dtype)))
            for role, value in after._asdict().items() if after is not before else ():
                if role != "weight_hh" and value is not None:
                    updates.append((own[role].chunk(gates)[leak], value[mine].to(own[role].dtype)))
        return updates

    def _scale_of(self, members: Sequence[Layer], hidden: Tensor) -> Tensor | None:
        """Return the weights on the units of each member, shape ``(members, units)``; None without witnesses."""
        found = [self.witnesses.get(member.recurrence.name) for member in members]
        if all(witness is None for witness in found):
            return None
        one = torch.ones_like(hidden[0, 0])
        return torch.stack([one if witness is None else witness.scales[0].to(one) for witness in found])

    def _within_gate_bound(
        self, rows: GateRows, high: Tensor, worst: Sequence[WorstInputs], target: Target
    ) -> GateRows:
        """Return rows whose leak gate is at most at its bound; ``rows`` themselves if it is already.

        Where values may be read, only rows outside are looked at again.
        """
        bound, state_bound = target.gate_bound, target.state_bound
        assert bound is not None
        units = len(high) // len(worst)
        if not self.reading:
            return _bounded(rows, worst, target)
        # NaN must not pass for inside.
        inside = rows.top(high, rows.weight_hh.abs().sum(1) * state_bound) <= math.log(bound / (1 - bound))
        outside = [(~own).nonzero()[:, 0] for own in torch.split(inside, units)]
        if not any(map(len, outside)):
            return rows
        chosen = _joined([own + index * units for index, own in enumerate(outside)])
        own = [inputs.of(units) for inputs, units in zip(worst, outside, strict=True)]
        return rows.replaced(chosen, _bounded(rows.of(chosen), own, target))

    # ----------------------------------------------------------------- state
    def state_dict(self) -> State:
        """Return what the next projection depends on, by the names of recurrences."""
        kept = {name: clip.state_dict() for name, clip in self._clips.items()}
        kept = {**self._restored, **{name: state for name, state in kept.items() if state}}
        kept |= {_WITNESS + name: _packed(witness) for name, witness in self.witnesses.items()}
        return {
            n: {key: value.detach().to("cpu", copy=True) for key, value in part.items()} for n, part in kept.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        """Take over the state of another one."""
        self._clips, self._factors = {}, {}
        restored = {n: {key: value.to(device) for key, value in part.items()} for n, part in state.items()}
        self.witnesses = {
            name.removeprefix(_WITNESS): _unpacked(restored.pop(name))
            for name in list(restored)
            if name.startswith(_WITNESS)
        }
        self._restored = restored


def _packed(witness: Contraction) -> dict[str, Tensor]:
    form = {} if witness.form is None else {"form": witness.form}
    order = torch.tensor(float(witness.order), dtype=torch.float64)
    return {"rate": witness.rate, "order": order, **form} | {f"scale{i}": s for i, s in enumerate(witness.scales)}


def _unpacked(state: Mapping[str, Tensor]) -> Contraction:
    scales = tuple(value for key, value in sorted(state.items()) if key.startswith("scale"))
    return Contraction(state["rate"], scales, float(state["order"]), state.get("form"))


def _kind(recurrence: Recurrence, constraint: Constraint, margin: float, driven: bool) -> _Kind | None:
    """Return what recurrences are grouped by; None for those that are left to the plain form."""
    parameters: Mapping[str, Tensor] = recurrence.parameters()
    if driven and recurrence.output_bound(parameters, None, constraint.state_bound) is None:
        return None  # the outputs rest on the projected weights, and the layers above on the outputs
    if isinstance(recurrence, RNNRecurrence):
        norm = recurrence.checked_norm(constraint.norm)
        together = norm in ("l2", "full") and constraint.method in (None, "euclidean")
        parameters = {"weight_hh": parameters["weight_hh"]}
    else:
        rows = constraint.norm in (None, "row", "tight") and constraint.method in _ROW_METHODS
        own = (
            isinstance(recurrence, GatedRecurrence)
            and type(recurrence).leading_budget is not GatedRecurrence.leading_budget
        )
        together = rows and own and "weight_hr" not in parameters
    if not together:
        return None
    shapes = tuple((role, value.shape, value.dtype) for role, value in parameters.items())
    return _Kind(type(recurrence), shapes, fast_target(recurrence, constraint, margin))


def _compute(value: Tensor) -> Tensor:
    """Return the values in float32 or better, without a copy where they are already."""
    value = value.detach()
    return value if value.dtype == torch.float32 else value.to(torch.promote_types(value.dtype, torch.float32))


def _stacked(values: Sequence[Tensor], gates: int) -> Tensor:
    """Return the blocks of all recurrences beside each other, shape ``(gates, recurrences * units, ...)``."""
    blocks = [_compute(value).view(gates, value.shape[0] // gates, *value.shape[1:]) for value in values]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _bounded(rows: GateRows, worst: Sequence[WorstInputs], target: Target) -> GateRows:
    """Lower the worst input's product, then the gate for whatever input is worst now, as the plain form does.

    Args:
        rows: The rows of all recurrences, one recurrence after the other.
        worst: The worst inputs of each recurrence.
        target: The bound on the gate.
    """
    assert target.gate_bound is not None
    points = [inputs.points() for inputs in worst]
    rows = leave_worst_input(rows, _joined(points), None, target.state_bound, target.gate_bound)
    after = torch.split(rows.weight_ih, [len(own) for own in points])
    parts = zip(worst, after, points, strict=True)
    high = _joined([inputs.highest_after(own, before) for inputs, own, before in parts])
    reach = rows.weight_hh.abs().sum(1) * target.state_bound
    return bound_gate(rows, Interval(high, high), reach, target.gate_bound)
