"""Project a model into the stable set, in place and certified."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable import checks
from lightning_stable.recurrence.base import GatedRecurrence, LeakingRecurrence, Recurrence
from lightning_stable.recurrence.lstm import miller_hardt_forget_bound
from lightning_stable.recurrence.registry import find_recurrences, gathered_model
from lightning_stable.recurrence.rnn import RNNRecurrence
from lightning_stable.stability.certify import certify_recurrences, check_finite
from lightning_stable.stability.inputs.resolve import Layer, Sources, gathered_sets, resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.stability.projection.give_back import give_back
from lightning_stable.stability.projection.recurrence import Target, shrink
from lightning_stable.stability.report import StabilityReport

# How far inside the set a projection aims, so that rounding to the stored dtype ends inside.
STRICT_MARGIN = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-8}
FAST_MARGIN = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-7}
# Projections of weights that several recurrences share.
_SHARED_ROUNDS = 4


@dataclass(frozen=True)
class Constraint:
    """The stable set a user asked for; defaults that depend on the cell are resolved per recurrence.

    Attributes:
        rate: Largest contraction rate, in (0, 1).
        norm: Certificate, or None for the cell's default.
        method: Projection, or None for the cell's default.
        gate_bound: Largest value of the leak gate, below ``rate``, or None for the cell's default.
        state_bound: Start states have entries of at most this size.
    """

    rate: float = 0.99
    norm: str | None = None
    method: str | None = None
    gate_bound: float | None = None
    state_bound: float = 1.0

    def __post_init__(self) -> None:
        rate = checks.number("rate", self.rate, "(0, 1)")
        checked: dict[str, object] = {
            "rate": rate,
            "state_bound": checks.number("state_bound", self.state_bound, "[0, inf)"),
        }
        if self.gate_bound is not None:
            checked["gate_bound"] = checks.number("gate_bound", self.gate_bound, f"(0, {rate})")
        for name in ("norm", "method"):
            if getattr(self, name) is not None:
                checks.text(name, getattr(self, name))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def target(self, recurrence: Recurrence, margin: float, *, exact: bool) -> Target:
        """Return the target of one recurrence, ``margin`` (relative) inside the set.

        Raises:
            ValueError: If the cell has no such norm or method, or cannot reach the rate at all.
        """
        norm = recurrence.checked_norm(self.norm)
        method = self.method or ("miller-hardt" if norm == "miller-hardt" else recurrence.methods[0])
        if method not in recurrence.methods:
            raise ValueError(
                f"`method` must be one of {recurrence.methods} for the {recurrence.cell} recurrence "
                f"{recurrence.name!r}. Got {method!r}."
            )
        if norm == "miller-hardt" and method != norm:
            raise ValueError(f"`method` must be 'miller-hardt' with norm='miller-hardt'. Got {method!r}.")
        gated = isinstance(recurrence, GatedRecurrence)
        if gated and norm == "l2" and method not in ("shares", "rescale"):
            raise ValueError(f"`method` must be 'shares' or 'rescale' with norm='l2'. Got {method!r}.")
        gate_bound = self.gate_bound_of(recurrence, method) if isinstance(recurrence, LeakingRecurrence) else None
        return Target(
            rate=self.rate * (1 - margin),
            norm=norm,
            method=method,
            gate_bound=None if gate_bound is None else gate_bound * (1 - margin),
            # Hidden states reach 1 wherever a run starts from: what holds from there holds from zero.
            state_bound=max(1.0, self.state_bound),
            exact=exact,
        )

    def gate_bound_of(self, recurrence: LeakingRecurrence, method: str) -> float:
        """Return the bound on the leak gate of one recurrence.

        By default ``rate ** 2`` where recurrent weights share the rate, and ``rate`` where there are none: measured on
        music and text, a lower bound keeps larger recurrent weights and costs accuracy, because memory is what a leak
        gate near 1 is for. Without biases a gate cannot be kept below 1/2.
        """
        biased = recurrence.can_close
        if not biased and (self.rate <= 0.5 or (self.gate_bound is not None and self.gate_bound <= 0.5)):
            raise ValueError(
                f"The {recurrence.leak} gate of {recurrence.name!r} has no bias, so its largest value is at least "
                f"1/2: `rate` and `gate_bound` must be above 0.5. Got rate={self.rate}, gate_bound={self.gate_bound}."
            )
        if self.gate_bound is not None:
            return self.gate_bound
        bound = self.rate**recurrence.leak_power
        if method == "miller-hardt":
            bound = min(bound, 0.64, miller_hardt_forget_bound(self.rate))
        return bound if biased else max(bound, (0.5 + self.rate) / 2)


@torch.no_grad()
def project_(
    module: nn.Module,
    rate: float = 0.99,
    *,
    input_bound: InputBound = None,
    strict: bool = True,
    norm: str | None = None,
    method: str | None = None,
    gate_bound: float | None = None,
    state_bound: float = 1.0,
    modules: str | Iterable[str] | None = None,
) -> StabilityReport:
    """Move the recurrent weights, in place and no further than needed, until every certified rate is at most ``rate``.

    Parameters keep their storage. A recurrence inside the set is left untouched, bit for bit, so a second call does
    nothing. Recurrences with frozen parameters (``requires_grad=False``) are never touched; a warning names those
    that are not stable.

    Args:
        module: Any module; recurrences are found at any depth. One that is sharded (``fully_shard``) is projected by
            all processes together, between its forwards.
        rate: Target in (0, 1).
        input_bound: As in :func:`certify`. Gated cells need one unless it can be derived.
        strict: Compute in float64 and verify each result against its certificate. False: compute in float32 with
            a wider margin (1e-5), as done after every training step.
        norm: As in :func:`certify`.
        method: RNN: ``euclidean`` (nearest point) or ``rescale``; gated cells: ``shares`` (each gate is sure of its
            share of the row budget), ``euclidean`` (nearest rows), ``rescale`` (one factor per unit); LSTM also
            ``miller-hardt`` (the conditions of the paper's Proposition 2).
        gate_bound: Largest value of LSTM's forget or GRU's update gate, in (0, ``rate``); None for the default.
            Larger bounds keep memory longer and leave less room for the recurrent weights.
        state_bound: As in :func:`certify`.
        modules: As in :func:`certify`.

    Returns:
        The certificate of the stored weights afterwards.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, weights are NaN or infinite, a gated recurrence has no input
            bound, or the rate cannot be reached. All weights are then left as they were.
    """
    constraint = Constraint(rate, norm, method, gate_bound, state_bound)
    strict = checks.boolean("strict", strict)
    with gathered_model(module):
        recurrences = find_recurrences(module, modules)
        sources = resolve_sources(module, recurrences, input_bound, state_bound=constraint.state_bound)
        sources = gathered_sets(sources)
        check_finite(recurrences)
        check_writable(recurrences)
        parameters = [id(value) for r in recurrences for value in r.parameters().values()]
        # What one recurrence asks of weights it shares may be too little for the other.
        for _ in range(1 if len(set(parameters)) == len(parameters) else _SHARED_ROUNDS):
            apply_updates(propose_updates(recurrences, sources, constraint, strict=strict))
        return certify_recurrences(recurrences, sources, norm, constraint.state_bound)


def is_frozen(recurrence: Recurrence) -> bool:
    """Return whether a parameter that the projection would have to change requires no gradient."""
    parameters = recurrence.parameters()
    return any(not value.requires_grad for role, value in parameters.items() if role in recurrence.projected_roles)


def check_writable(recurrences: Iterable[Recurrence]) -> None:
    """Check that what the projection changes can be written to in place, before any of it is.

    Raises:
        ValueError: If a weight was made in inference mode, or is expanded, so that its entries share memory.
    """
    for recurrence in recurrences:
        if is_frozen(recurrence):
            continue
        names = recurrence.parameter_names()
        for role, value in recurrence.parameters().items():
            shares = any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True))
            if shares or (value.is_inference() and not torch.is_inference_mode_enabled()):
                what = "an expanded tensor" if shares else "a tensor made in inference mode"
                name = f"{recurrence.module_name}.{names[role]}".removeprefix(".")
                raise ValueError(
                    f"Recurrent weights must be tensors that can be written to. Got {what} in {name!r}: store a clone "
                    "of it as the parameter."
                )


Update = tuple[Tensor, Tensor]


@torch.no_grad()
def propose_updates(
    recurrences: Sequence[Recurrence],
    sources: Sources,
    constraint: Constraint,
    *,
    strict: bool,
    margin: float = 0.0,
    training: bool | None = None,
    known: dict[str, dict[str, Any]] | None = None,
) -> list[Update]:
    """Return new values for the parameters that have to move; nothing is written.

    Args:
        recurrences: In the order of :func:`find_recurrences`.
        sources: Their input sets.
        constraint: The stable set.
        strict: See :func:`project_`. The fast form reads no value on the host.
        margin: Smallest relative margin to aim for, for weights that are rounded again when they are used.
        training: Whether dropout between layers is active; None asks each module.
        known: See :func:`~lightning_stable.stability.inputs.resolve.walk_layers`; for ``strict``.

    Returns:
        Pairs of a parameter and its new value, in the parameter's dtype.

    Raises:
        ValueError: As :func:`project_`.
    """
    layers = walk_layers(
        recurrences,
        sources,
        constraint.state_bound,
        training,
        projected=True,
        weights=lambda recurrence: compute_weights(recurrence, constraint, strict=strict),
        known=known,
    )
    updates: list[Update] = []
    for layer in layers:
        updates += propose_update(layer, constraint, strict=strict, margin=margin)
    return updates


def propose_update(layer: Layer, constraint: Constraint, *, strict: bool, margin: float) -> list[Update]:
    """Return the updates of one layer, and put the new values into its weights, where the layer above reads them."""
    recurrence, changed = layer.recurrence, {}
    if is_frozen(recurrence):
        if strict:
            _warn_if_unstable(layer, constraint)
    elif recurrence.needs_drive and layer.inputs is None:
        raise ValueError(
            f"The {recurrence.cell} recurrence {recurrence.name!r} has no known input set, and its rate depends on "
            "its inputs: pass `input_bound` (a number bounding every |x_k|, or an input set), or bound them in "
            "the model, for example with x.clamp(-B, B). Got input_bound=None."
        )
    else:
        changed = (_strict if _is_verified(recurrence, constraint, strict) else _fast)(layer, constraint, margin)
    layer.replace_weights(changed)
    parameters = recurrence.parameters()
    return [(parameters[role], value) for role, value in changed.items()]


def apply_updates(updates: Sequence[Update]) -> None:
    """Write new values into the parameters' own storage (flattened cuDNN weights stay intact)."""
    with torch.no_grad():
        for parameter, value in updates:
            parameter.copy_(value)


def compute_weights(recurrence: Recurrence, constraint: Constraint, *, strict: bool) -> dict[str, Tensor]:
    """Return copies of the weights in the dtype to project in: float64 for a verified result, else at least float32."""
    stored = next(iter(recurrence.parameters().values())).dtype
    verified = _is_verified(recurrence, constraint, strict)
    return recurrence.weights(torch.float64 if verified else torch.promote_types(stored, torch.float32))


def _is_verified(recurrence: Recurrence, constraint: Constraint, strict: bool) -> bool:
    # These norms end a descent that rounding can send elsewhere: only a verified result is inside.
    found = isinstance(recurrence, RNNRecurrence) and recurrence.checked_norm(constraint.norm) in ("diagonal", "full")
    return strict or found


def fast_target(recurrence: Recurrence, constraint: Constraint, margin: float) -> Target:
    """Return what the fast projection aims at."""
    margin = max(margin, max(FAST_MARGIN[value.dtype] for value in recurrence.parameters().values()))
    return constraint.target(recurrence, margin, exact=False)


def _fast(layer: Layer, constraint: Constraint, margin: float) -> dict[str, Tensor]:
    return _stored(layer, shrink(layer, fast_target(layer.recurrence, constraint, margin)))


def _strict(layer: Layer, constraint: Constraint, margin: float) -> dict[str, Tensor]:
    recurrence, rate = layer.recurrence, _rate(layer, constraint)
    if rate <= constraint.rate:
        return {}
    if math.isnan(rate):
        raise ValueError(not_finite(recurrence.name))
    margin = max(margin, max(STRICT_MARGIN[value.dtype] for value in recurrence.parameters().values()))
    while margin < 0.5:
        target = constraint.target(recurrence, margin, exact=True)
        shrunk = shrink(layer, target)
        stored = _stored(layer, shrunk)
        if _rate(_with(layer, stored), constraint) <= constraint.rate:
            if not isinstance(recurrence, GatedRecurrence):  # it is at the target
                return stored
            stored = _stored(layer, give_back(layer, shrunk, target))
            if _rate(_with(layer, stored), constraint) <= constraint.rate:
                return stored
        margin *= 4  # rounding to the stored dtype has left the set: aim further inside
    if target.method == "miller-hardt" and isinstance(recurrence, GatedRecurrence):
        bound = constraint.gate_bound_of(recurrence, target.method)
        # Proposition 2 rests on |c| <= 1 / (1 - f), which a larger start state leaves whatever the weights are.
        if target.state_bound > 1 / (1 - bound):
            raise ValueError(
                f"`state_bound` must be at most 1 / (1 - gate_bound) = {1 / (1 - bound):.6g} with "
                f"method='miller-hardt'. Got state_bound={constraint.state_bound} with "
                f"gate_bound={bound:.6g} for {recurrence.name!r}."
            )
    raise ValueError(
        f"The {recurrence.cell} recurrence {recurrence.name!r} cannot reach the rate. Got rate={constraint.rate} with "
        f"norm={target.norm!r}, method={target.method!r}, gate_bound={target.gate_bound}; raise `rate`."
    )


def _with(layer: Layer, stored: Mapping[str, Tensor]) -> Layer:
    """Return the layer with stored weights in place of its own."""
    return replace(layer, weights=layer.weights | {role: value.double() for role, value in stored.items()})


def _stored(layer: Layer, changed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round new weights to the dtypes of the parameters."""
    parameters = layer.recurrence.parameters()
    return {role: value.to(parameters[role].dtype) for role, value in changed.items()}


def not_finite(name: str) -> str:
    """Return what is wrong where a rate is NaN though the recurrent weights are finite."""
    return (
        f"The input set of the recurrence {name!r} must be finite. Got NaN or Inf in the weights it is derived from "
        "(an embedding, a LayerNorm) or in their products; the recurrent weights were left as they are. Lower the "
        "learning rate or clip gradients."
    )


def _rate(layer: Layer, constraint: Constraint) -> float:
    """Return the certified rate of float64 weights; infinite if they do not respect the gate bound."""
    recurrence = layer.recurrence
    target = constraint.target(recurrence, 0.0, exact=True)
    rate = layer.contraction(target.norm).rate.item()
    known = layer.drive is not None or not recurrence.needs_drive
    if isinstance(recurrence, LeakingRecurrence) and known and target.gate_bound is not None and rate <= target.rate:
        leak = recurrence.leak_maximum(layer.weights, layer.drive, target.state_bound)
        return rate if (leak <= target.gate_bound).all() else math.inf
    return rate


def _warn_if_unstable(layer: Layer, constraint: Constraint) -> None:
    recurrence = layer.recurrence
    rate = layer.contraction(recurrence.checked_norm(constraint.norm)).rate.item()
    if not rate <= constraint.rate:
        warnings.warn(
            f"The frozen recurrence {recurrence.name!r} has the certified rate {rate:.6g}, above the target "
            f"{constraint.rate}; frozen weights are never changed. Unfreeze or replace them to make it stable.",
            stacklevel=5,
        )
