"""Certify a model: the contraction rate of every recurrence, in float64, from the weights as they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable import checks, linalg
from lightning_stable.recurrence.base import Contraction, Recurrence
from lightning_stable.recurrence.registry import find_recurrences, gathered_model, is_recurrent
from lightning_stable.stability.inputs.derive import derive
from lightning_stable.stability.inputs.resolve import Layer, Sources, gathered_sets, resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound, InputSet
from lightning_stable.stability.report import REMEDY, LayerCertificate, StabilityReport
from lightning_stable.stability.window_bounds import by_module

NO_INPUT_SET = (
    "Its rate depends on its inputs, and no set of them is known. Declare `input_bound`, pass the ranges that "
    "`record_inputs` yields, or read the `report` of the StabilityProjectionCallback, which recorded them in training."
)
# The dtypes in which weights are numbers that float64 holds exactly.
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NO_RATE = f"There is no finite rate for these weights, inputs and start states. {REMEDY}"


@torch.no_grad()
def certify(
    module: nn.Module,
    *,
    input_bound: InputBound = None,
    norm: str | None = None,
    state_bound: float = 1.0,
    modules: str | Iterable[str] | None = None,
) -> StabilityReport:
    """Certify the contraction rate of every recurrence in a module.

    A layer with rate ``r`` maps any two admissible states, given the same input, to states whose distance is at most
    ``r`` times as large (:meth:`LayerCertificate.distance`). Admissible are all inputs of the layer's input set and
    all states that runs reach from start states with entries up to ``state_bound``; nn.RNN needs no restriction. The
    claim is about the stored weights in exact arithmetic; layers with dropout between them are certified for
    training mode while ``module.training`` is set, which covers evaluation.

    Args:
        module: Any module; recurrences are found at any depth. One that is sharded (``fully_shard``) is certified by
            all processes together, between its forwards.
        input_bound: A number (``|x_k| <= B``), an input set (``ActiveEntries(8)``, ``L2Ball(3.0)``, ...), a mapping
            from names of recurrent modules or layers to those, or None: use what follows from the model itself
            (embedding tables, LayerNorm, clamps, bounded layers below).
        norm: Certificate to use. RNN: ``l2``, ``linf``, ``l1``, ``perron``, ``diagonal``, ``full``; gated cells:
            ``row``, ``tight``, ``l2``; LSTM also ``miller-hardt``. None takes the first of these, and where it gives
            no rate below 1, the sharpest (``full``, ``tight``), which takes longer.
        state_bound: Largest entry of any part of a start state (``h_0``, ``c_0``), at least 0; 0 covers runs from zero
            only.
        modules: Shell-style patterns of the names of the recurrent modules to certify; None takes all.

    Returns:
        The report. A gated recurrence whose inputs are unknown has an infinite rate and the guarantee ``"none"``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no recurrence, an argument is out of range, or weights are NaN, infinite, complex,
            integers or of a dtype with fewer than 16 bits.
    """
    state_bound = checks.number("state_bound", state_bound, "[0, inf)")
    norm = None if norm is None else checks.text("norm", norm)
    with gathered_model(module):
        recurrences = find_recurrences(module, modules)
        sources = gathered_sets(resolve_sources(module, recurrences, input_bound, state_bound=state_bound))
        report = certify_recurrences(recurrences, sources, norm, state_bound, sharpest=norm is None)
        unknown = [layer.name for layer in report.layers if layer.reason == NO_INPUT_SET]
        if not unknown or is_recurrent(module):
            return report
        why = derive(module, state_bound=state_bound).reasons
    modules_of = {recurrence.name: recurrence.module_name for recurrence in recurrences}
    reasons = {name: f"{why.get(modules_of[name], '')} {NO_INPUT_SET}".strip() for name in unknown}
    return report.revoked(reasons)


@torch.no_grad()
def certify_recurrences(
    recurrences: Sequence[Recurrence],
    sources: Sources,
    norm: str | None = None,
    state_bound: float = 1.0,
    *,
    training: bool | None = None,
    leading_only: bool = False,
    witnesses: Mapping[str, Contraction] | None = None,
    sharpest: bool = False,
    known: dict[str, dict[str, Any]] | None = None,
) -> StabilityReport:
    """Certify recurrences whose input sets are known already; see :func:`certify`.

    Args:
        recurrences: In the order of :func:`find_recurrences`.
        sources: Their input sets.
        norm: As in :func:`certify`.
        state_bound: As in :func:`certify`.
        training: Whether dropout between layers is active; None asks each module.
        leading_only: Use the inputs for the leak gates only: several times cheaper, valid, a little less sharp.
        witnesses: Norms found before, by the name of the recurrence; they are checked and not looked for again.
        sharpest: Whether to try the cell's sharpest norm where the chosen one gives no rate below 1.
        known: See :func:`~lightning_stable.stability.inputs.resolve.walk_layers`.
    """
    state_bound = checks.number("state_bound", state_bound, "[0, inf)")
    check_finite(recurrences)
    certificates, directed = [], []
    for layer in walk_layers(recurrences, sources, state_bound, training, leading_only=leading_only, known=known):
        chosen = layer.recurrence.checked_norm(norm)
        contraction = layer.contraction(chosen, (witnesses or {}).get(layer.recurrence.name))
        sharper = layer.recurrence.sharpest_norm
        if sharpest and sharper is not None and 1 <= contraction.rate < math.inf:
            other = layer.contraction(sharper)
            if other.rate < 1:
                chosen, contraction = sharper, other
        certificates.append(_certify_layer(layer, chosen, contraction))
        directed.append((layer, contraction))
    return StabilityReport(tuple(certificates), bounds=by_module(directed))


def _certify_layer(layer: Layer, norm: str, contraction: Contraction) -> LayerCertificate:
    recurrence, inputs = layer.recurrence, layer.inputs if layer.recurrence.needs_drive else None
    rate, reason = contraction.rate.item(), None
    if not rate < math.inf:
        # An overflow times 0 is NaN as well, but that of an input set that is not finite is to be told apart.
        rate = math.nan if inputs is not None and not _is_finite(inputs, layer.weights["weight_ih"]) else math.inf
        reason = NO_INPUT_SET if recurrence.needs_drive and inputs is None else _NO_RATE
    guarantee = "guaranteed" if inputs is None else inputs.guarantee
    blocks = recurrence.recurrent_blocks(layer.weights)
    return LayerCertificate(
        name=recurrence.name,
        layer=recurrence.layer,
        direction=recurrence.direction,
        cell=recurrence.cell,
        rate=rate,
        norm=norm,
        input_bound=None if inputs is None else inputs.describe(),
        guarantee=guarantee if reason is None else "none",
        recurrent_norm={gate: block.norm().item() for gate, block in blocks.items()},
        contraction=contraction,
        reason=reason,
    )


def _is_finite(inputs: InputSet, weight: Tensor) -> bool:
    box = inputs.box(weight.shape[1], weight)
    return bool(torch.isfinite(torch.stack((box.low, box.high))).all())


def check_finite(recurrences: Sequence[Recurrence]) -> None:
    """Check that all parameters are real floating-point numbers and finite, with one host read for all.

    Raises:
        ValueError: If one is not, with its name. Entries too large for their sum to be finite count as infinite.
    """
    named = [
        (f"{r.module_name}.{r.parameter_names()[role]}".removeprefix("."), value.detach())
        for r in recurrences
        for role, value in r.parameters().items()
    ]
    for name, value in named:
        # A cast to float64 would make numbers of all of them: the real part, or the codes of quantized values.
        if value.dtype not in _REAL or value.is_meta:
            raise ValueError(
                "Recurrent weights must be float16, bfloat16, float32 or float64 numbers. "
                f"Got {'a meta tensor' if value.is_meta else value.dtype} in {name!r}."
            )
    finite = linalg.all_finite(*(value for _, value in named))
    if not finite.all():
        name, value = named[int(finite.to(torch.uint8).argmin())]
        entries = "entries whose sum overflows" if torch.isfinite(value).all() else "NaN or Inf"
        raise ValueError(
            f"Recurrent weights must be finite. Got {entries} in {name!r}; "
            "all weights were left as they are. Lower the learning rate or clip gradients."
        )
