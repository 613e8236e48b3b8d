"""The projection of one recurrence onto the stable set: one function per family of recurrences.

All of it is tensor arithmetic on copies: nothing here writes to a module, and on the default path nothing reads a
value on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from lightning_stable import linalg
from lightning_stable.recurrence.base import Budget, GatedRecurrence, Recurrence
from lightning_stable.recurrence.input_gated import InputGatedRecurrence
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.leaky_rnn import LeakyRNNRecurrence, entering
from lightning_stable.recurrence.lstm import miller_hardt_radii
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.stability.inputs.resolve import Layer, unbounded_drive
from lightning_stable.stability.inputs.sets import InputSet
from lightning_stable.stability.projection.gate_bound import GateRows, bound_gate, leave_worst_input
from lightning_stable.stability.projection.sets import (
    clip_singular_values,
    project_rows_image_l1,
    project_rows_l1,
    project_rows_weighted_l1,
    share_budget,
)

_BISECTIONS = 40
# A full norm is found anew for what a projection leaves: it ends this close below the rate, in a few attempts.
_CLOSE, _ATTEMPTS = 1e-3, 8
# So much of the recurrent weights is tried where a tight norm is not found again.
_FACTORS = (1.0, 0.9, 0.7, 0.5)
_WORST_INPUTS = 8
# Halvings of the way back of a unit whose gates were bounded further than its leak asks for.
_GIVEN_BACK = 12


@dataclass(frozen=True)
class Target:
    """What the new weights must satisfy, margins included."""

    rate: float
    norm: str
    method: str
    gate_bound: float | None = None
    state_bound: float = 1.0
    exact: bool = True


def shrink(layer: Layer, target: Target) -> dict[str, Tensor]:
    """Return weights moved into the set of ``target``; roles that did not change may be left out."""
    return _shrink(layer.recurrence, layer, target)


@singledispatch
def _shrink(recurrence: Recurrence, layer: Layer, target: Target) -> dict[str, Tensor]:
    """Scale all recurrent weights by one factor, found by bisection, where only the certificate of the cell is known.

    The certificate must not grow when they shrink.
    """
    weights = layer.weights
    low = torch.zeros_like(weights[recurrence.recurrent_roles[0]].flatten()[0])
    high = torch.ones_like(low)

    def scaled(factor: Tensor) -> dict[str, Tensor]:
        return {role: weights[role] * factor for role in recurrence.recurrent_roles}

    def holds(factor: Tensor) -> Tensor:
        trial = {**weights, **scaled(factor)}
        rate = recurrence.contraction(trial, layer.drive, norm=target.norm, state_bound=target.state_bound).rate
        return rate <= target.rate

    inside = holds(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = holds(middle)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return scaled(torch.where(inside, torch.ones_like(low), low))


@_shrink.register
def _shrink_rnn(recurrence: RNNRecurrence, layer: Layer, target: Target) -> dict[str, Tensor]:
    weights, rate = layer.weights, target.rate
    hidden = weights["weight_hh"]
    if target.method == "euclidean":
        match target.norm:
            case "l2":
                return {"weight_hh": clip_singular_values(hidden, rate, reading=target.exact)}
            case "linf":
                return {"weight_hh": project_rows_l1(hidden, torch.full_like(hidden[:, 0], rate), exact=target.exact)}
            case "l1":
                columns = torch.full_like(hidden[0], rate)
                return {"weight_hh": project_rows_l1(hidden.mT, columns, exact=target.exact).mT}
            case "perron":
                # With the weights v frozen the set {|W| v <= rate v} is convex and inside the set of all v.
                scale = linalg.perron_weights(hidden)
                hidden = project_rows_weighted_l1(hidden, scale, rate * scale, exact=target.exact)
            case "full":
                hidden = _clip_in_full(hidden, rate)
            case "diagonal":
                scale = linalg.diagonal_weights(hidden)
                clipped = clip_singular_values(scale[:, None] * hidden / scale, rate)
                outside = linalg.diagonal_norm(hidden, scale) > rate
                hidden = torch.where(outside, clipped / scale[:, None] * scale, hidden)
    # All norms of W are homogeneous, so a common factor meets the rate exactly.
    norm = recurrence.contraction({**weights, "weight_hh": hidden}, None, norm=target.norm).rate
    return {"weight_hh": hidden * (rate / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)}


def _clip_in_full(hidden: Tensor, rate: float) -> Tensor:
    """Clip in the best form for ``hidden``, no further than the best one for the result asks for.

    Where a clip of the singular values themselves would move the weights less, as much of it is taken as is needed.
    """

    def found(weight: Tensor) -> float:
        return float(linalg.quadratic_norm(weight, linalg.quadratic_form(weight)))

    if found(hidden) <= rate:
        return hidden
    factors, bound = linalg.quadratic_factors(linalg.quadratic_form(hidden)), rate
    clipped = hidden
    for _ in range(_ATTEMPTS):
        clipped = clip_singular_values(hidden, bound, reading=True, factors=factors)
        reached = found(clipped)
        if rate * (1 - _CLOSE) <= reached <= rate:
            break
        bound *= rate * (1 - _CLOSE / 3) / reached
    nearest = clip_singular_values(hidden, rate, reading=True)
    if (nearest - hidden).norm() >= (clipped - hidden).norm():
        return clipped
    low, high = 0.0, 1.0
    while high - low > _CLOSE / 4:
        middle = (low + high) / 2
        low, high = (middle, high) if found(nearest.lerp(hidden, middle)) <= rate else (low, middle)
    return nearest.lerp(hidden, low)


@_shrink.register
def _shrink_leaky(recurrence: LeakyRNNRecurrence, layer: Layer, target: Target) -> dict[str, Tensor]:
    """Lower the leaks, then move ``W`` for these leaks.

    In ``l2`` and ``full`` ``||(rate - A)^(-1/2) B W (rate - A)^(-1/2)||_2 <= 1``, the condition of ``l2``, is met; in
    ``linf`` row ``j`` has ``||w_j||_1 <= (rate - a_j) / (1 - a_j)``.
    """
    bound, hidden = target.gate_bound, layer.weights["weight_hh"]
    assert bound is not None
    leak = layer.weights["leak"].clamp(max=math.log(bound / (1 - bound)))
    weights = {**layer.weights, "leak": leak}
    keep = torch.sigmoid(-leak)
    rest = target.rate - 1 + keep  # without cancellation where the leak is near 1
    if target.method == "rescale":
        scaled = entering(weights)
        if target.norm == "linf":
            size = (scaled.abs().sum(1) / rest).amax()
        else:
            size = linalg.spectral_norm(scaled / rest.sqrt()[:, None] / rest.sqrt())
        hidden = hidden / size.clamp(min=1)
    elif target.norm == "linf":
        hidden = project_rows_l1(hidden, rest / keep, exact=target.exact)
    else:
        left, right = keep / rest.sqrt(), rest.rsqrt()
        factors = linalg.Factors(left.diag(), right.diag(), left.reciprocal().diag(), right.reciprocal().diag())
        hidden = clip_singular_values(hidden, 1.0, reading=target.exact, factors=factors)
    return {"weight_hh": hidden, "leak": leak}


@_shrink.register
def _shrink_input_gated(recurrence: InputGatedRecurrence, layer: Layer, target: Target) -> dict[str, Tensor]:
    """Bound the gates, then go back as far as the leak itself allows, unit by unit."""
    inputs, bound = layer.inputs, target.gate_bound
    assert inputs is not None
    assert bound is not None

    def lowered(rows: Tensor, bias: Tensor | None, limit: float) -> tuple[Tensor, Tensor | None]:
        gate = GateRows(rows, rows[:, :0], bias)
        for _ in range(_WORST_INPUTS if target.exact else 1):
            gate = leave_worst_input(gate, inputs.maximizer(gate.weight_ih), None, 0.0, limit)
        gate = bound_gate(gate, inputs.drive(gate.weight_ih), torch.zeros_like(rows[:, 0]), limit)
        return gate.weight_ih, gate.bias_ih

    before = {role: layer.weights[role] for role in recurrence.roles if role in layer.weights}
    after = recurrence.with_bounded_gates(before, bound, lowered)

    def between(share: Tensor) -> dict[str, Tensor]:
        return {role: _between(share, after[role], value) for role, value in before.items()}

    # Largest products are convex in the rows, so those of the ends bound those in between.
    ends = [inputs.drive(recurrence.driven_rows(end)) for end in (after, before)]

    def fits(share: Tensor) -> Tensor:
        low, high = (_between(share, *pair) for pair in zip(*ends, strict=True))
        return recurrence.leak_maximum(between(share), Interval(low, high), target.state_bound) <= bound

    units = len(before["weight_ih"]) // recurrence.blocks
    low, high = before["weight_ih"].new_zeros(units), before["weight_ih"].new_ones(units)
    whole = fits(high)
    for _ in range(_GIVEN_BACK):
        middle = (low + high) / 2
        fit = fits(middle)
        low, high = torch.where(fit, middle, low), torch.where(fit, high, middle)
    return between(torch.where(whole, torch.ones_like(low), low))


def _between(share: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """``after + share (before - after)`` for blocks of units, ``before`` bit for bit where the share is 1."""
    part = share.repeat(len(after) // len(share)).view(-1, *[1] * (after.dim() - 1))
    return torch.where(part < 1, after + part * (before - after), before)


@_shrink.register
def _shrink_gated(recurrence: GatedRecurrence, layer: Layer, target: Target) -> dict[str, Tensor]:
    weights = dict(layer.weights)
    leading = weights["weight_ih"][recurrence.leading_rows()]
    inputs, worst = _worst(layer, recurrence)
    if target.exact:
        drive = inputs.drive(weights["weight_ih"])
    else:
        # The other gates are bounded by 1 whatever drives them, and one pass over the inputs serves both steps.
        drive = unbounded_drive(weights)
        drive.high[recurrence.leading_rows()] = (leading * worst).sum(1)
    weights["weight_hh"] = _shrink_weighted(layer, recurrence, drive, target)
    weights.update(_gate_step(recurrence, weights, inputs, worst, target))
    if target.norm == "l2" or target.method == "miller-hardt":
        # These methods do not end inside the set by themselves (clipping can raise row sums, Miller and Hardt's
        # rates end at 0.933): a common factor does, because shrinking only lowers the frozen coefficients.
        drive = inputs.drive(weights["weight_ih"]) if target.exact else drive
        weights["weight_hh"] = _shrink_recurrent(recurrence, weights, drive, target, method="rescale")
    return weights


def _shrink_weighted(layer: Layer, recurrence: GatedRecurrence, drive: Interval, target: Target) -> Tensor:
    """Shrink in the norm that is best before; by more, or in the plain norm, if none is found afterwards."""
    weights, witness = layer.weights, None
    if target.exact and target.method != "miller-hardt":
        witness = recurrence.projection_witness(
            weights, layer.drive, target.rate, norm=target.norm, state_bound=target.state_bound
        )
    if witness is not None:
        shrunk = _shrink_recurrent(recurrence, weights, drive, target, scale=witness.scales[0][None])
        for factor in _FACTORS:
            trial = {**weights, "weight_hh": factor * shrunk}
            trial.update(_gate_step(recurrence, trial, *_worst(layer, recurrence), target))
            assert layer.inputs is not None
            after = layer.inputs.drive(recurrence.driven_rows(trial))
            rate = recurrence.contraction(trial, after, norm=target.norm, state_bound=target.state_bound).rate
            if rate <= target.rate:
                return factor * shrunk
    return _shrink_recurrent(recurrence, weights, drive, target)


def _worst(layer: Layer, recurrence: GatedRecurrence) -> tuple[InputSet, Tensor]:
    assert layer.inputs is not None
    return layer.inputs, layer.inputs.maximizer(layer.weights["weight_ih"][recurrence.leading_rows()])


def _shrink_recurrent(
    recurrence: GatedRecurrence,
    weights: dict[str, Tensor],
    drive: Interval,
    target: Target,
    method: str | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    assert target.gate_bound is not None
    budget = recurrence.budget(
        weights, drive, target.rate, norm=target.norm, state_bound=target.state_bound, leak_bound=target.gate_bound
    )
    if target.norm == "l2":
        blocks = recurrence.recurrent_matrix(weights).chunk(len(recurrence.gates))
        norms = torch.stack([linalg.spectral_norm(block) for block in blocks])[:, None]
    elif scale is None:
        norms = recurrence.row_norms(weights)
    else:
        gates = len(recurrence.gates)
        norms = (recurrence.recurrent_matrix(weights).abs() @ scale[0]).view(gates, -1) / scale[0]
    return meet_budget(recurrence, weights, norms, budget, target, method, scale)


def meet_budget(
    recurrence: GatedRecurrence,
    weights: dict[str, Tensor],
    norms: Tensor,
    budget: Budget,
    target: Target,
    method: str | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return ``weight_hh``, shrunk until it meets the conditions by ``method`` or that of the target.

    Args:
        recurrence: The recurrence whose cell the weights are for.
        weights: ``weight_hh`` in blocks of ``units`` rows, and ``weight_hr`` if there is one.
        norms: The row norms of ``weight_hh``, shape ``(gates, units)``, or spectral norms, ``(gates, 1)``.
        budget: The conditions.
        target: Names the norm and the method.
        method: The method in place of the target's.
        scale: Weights ``v`` on units, shape ``(recurrences, units)``: the norms are those of ``|W_jk| v_k / v_j``.
    """
    assert target.gate_bound is not None
    method = method or target.method
    hidden, gates = weights["weight_hh"], len(recurrence.gates)
    tiny = torch.finfo(hidden.dtype).tiny
    demand = budget.coefficients * norms

    if method == "rescale":
        largest = torch.stack([budget.terms_of(demand).sum(0), *(demand[gate] for gate in budget.alone())]).amax(0)
        factor = (budget.limit / largest.clamp(min=tiny)).clamp(max=1)
        return hidden * factor.expand(hidden.shape[0] // gates).repeat(gates)[:, None]
    if method == "euclidean":
        units = hidden.shape[0] // gates
        rows = hidden.view(gates, units, -1).transpose(0, 1).clone()
        limit = budget.limit if scale is None else budget.limit * scale.flatten()
        alone = list(budget.alone())
        for gate in alone:
            radius = limit / budget.coefficients[gate].clamp(min=tiny)
            rows[:, gate] = _project_gated_rows(weights, rows[:, gate, None], None, radius, target.exact, scale)[:, 0]
        # The sum of the demands of a term is at least the largest.
        others = [gate for gate in range(gates) if gate not in alone]
        coefficients = budget.coefficients[others].mT
        rows[:, others] = _project_gated_rows(weights, rows[:, others], coefficients, limit, target.exact, scale)
        return rows.transpose(0, 1).reshape_as(hidden)

    if method == "miller-hardt":
        keep = hidden.new_full((), 1 - target.gate_bound)
        # Strictly inside, for Proposition 2 asks for <, and far enough for what rounding does to the gate: one that
        # ends above its bound would not cost some rate but all of it.
        radius = miller_hardt_radii(keep)[:, None].expand_as(norms) * (1 - 1e-4)
    else:
        # Filled on the device: a tensor made from a list would be copied there, and the host would wait for it.
        terms = budget.members()
        shares = torch.cat([hidden.new_full((1,), sum(recurrence.shares[gate] for gate in term)) for term in terms])
        allocation = share_budget(budget.terms_of(demand), shares, budget.limit)
        allowed = {gate: allocation[index] for index, term in enumerate(terms) for gate in term}
        allowance = torch.stack([allowed.get(gate, budget.limit) for gate in range(gates)])
        # A gate that is served in full keeps its rows; dividing back would lose a bit of them.
        radius = torch.where(allowance < demand, allowance / budget.coefficients.clamp(min=tiny), torch.inf)
    if target.norm == "l2":
        return torch.cat([clip_singular_values(b, r) for b, r in zip(hidden.chunk(gates), radius[:, 0], strict=True)])
    if scale is not None:
        radius, norms = radius * scale.flatten(), norms * scale.flatten()
    if "weight_hr" in weights:
        rows = _project_gated_rows(weights, hidden.unsqueeze(1), None, radius.flatten(), target.exact, scale)
        return rows.reshape_as(hidden)
    columns = None if scale is None else _columns(scale).repeat(gates, 1)
    return project_rows_weighted_l1(hidden, columns, radius.flatten(), exact=target.exact, sizes=norms.flatten())


def _columns(scale: Tensor) -> Tensor:
    """Return the weights of the columns for every row of a gate, from those of the units of each recurrence."""
    return scale.repeat_interleave(scale.shape[1], dim=0)


def _project_gated_rows(
    weights: dict[str, Tensor],
    rows: Tensor,
    coefficients: Tensor | None,
    radius: Tensor,
    exact: bool,
    scale: Tensor | None,
) -> Tensor:
    """Project ``rows``, ``(n, blocks, states)``, onto ``sum_q coefficients_q ||row_q v||_1 <= radius``.

    With an output projection the norm is that of the row's image under it. ``coefficients``, ``(n, blocks)``, and
    ``v`` are ones if None.
    """
    if "weight_hr" in weights:
        if coefficients is None:
            coefficients = torch.ones_like(rows[:, :, 0])
        image = weights["weight_hr"] if scale is None else weights["weight_hr"] * scale
        return project_rows_image_l1(rows, image, coefficients, radius, exact=exact)
    repeated = None if coefficients is None else coefficients.repeat_interleave(rows.shape[2], dim=1)
    if scale is not None:
        columns = _columns(scale).repeat(1, rows.shape[1])
        repeated = columns if repeated is None else repeated * columns
    return project_rows_weighted_l1(rows.reshape(rows.shape[0], -1), repeated, radius, exact=exact).view_as(rows)


def _gate_step(
    recurrence: GatedRecurrence, weights: dict[str, Tensor], inputs: InputSet, worst: Tensor, target: Target
) -> dict[str, Tensor]:
    """Lower the leak gate to at most ``target.gate_bound``; ``worst`` maximises its rows."""
    bound, state_bound = target.gate_bound, target.state_bound
    assert bound is not None
    index, gates, image = recurrence.gates.index(recurrence.leak), len(recurrence.gates), weights.get("weight_hr")
    leak = {role: weights[role].chunk(gates)[index] for role in GateRows._fields if role in weights}
    rows = GateRows(**leak)
    for pass_ in range(_WORST_INPUTS if target.exact else 1):
        worst = inputs.maximizer(rows.weight_ih) if pass_ else worst
        rows = leave_worst_input(rows, worst, image, state_bound, bound)
    product = rows.weight_hh if image is None else rows.weight_hh @ image
    rows = bound_gate(rows, inputs.drive(rows.weight_ih), product.abs().sum(1) * state_bound, bound)
    changed = {role: weights[role].clone() for role in leak}
    for role, values in zip(GateRows._fields, rows, strict=True):
        if values is not None:
            changed[role].chunk(gates)[index].copy_(values)
    return changed
