"""Certified for these inputs: how far a run that restarted from zero is from all runs with the same last inputs.

A worst-case window is as long as some input can make it that holds a gate open for ever. Here the inputs are given.
Beside the truncated run there are intervals for every entry of the state. They begin as the box of the states and hold
what the cell makes of them, see :mod:`lightning_stable.recurrence.tubes`. All layers restart together: an upper layer
reads the run and the intervals of the layer below.

Of a bidirectional module the window is on both sides, as in :mod:`window_bounds`: ``2 k - 1`` inputs with the output in
the middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from lightning_stable import checks, linalg
from lightning_stable.recurrence.around import euclidean
from lightning_stable.recurrence.base import Contraction, Recurrence, State
from lightning_stable.recurrence.enclosed import Enclosed, Premises
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.recurrence.registry import recurrences_of
from lightning_stable.recurrence.tubes import Metric
from lightning_stable.stability.certify import check_finite
from lightning_stable.stability.inputs.resolve import Layer, Sources, resolve_sources, walk_layers
from lightning_stable.stability.inputs.sets import InputBound
from lightning_stable.stability.window_bounds import window_bounds

# A box beyond this is that of a leak gate which rounds to 1: no bound at all.
_UNBOUNDED = 1e20
_CPU_BLOCK = 256


@torch.no_grad()
def certify_windows(
    recurrent: nn.Module, inputs: Tensor, *, state_bound: float = 1.0, input_bound: InputBound = None
) -> Tensor:
    """Bound what every given window leaves out, whatever came before it.

    The bound of a window is one on ``||y - y'||_2``: ``y`` is the output of the module on the window, from zero, and
    ``y'`` that of the module from *any* admissible state, on the same inputs. Admissible are all states that runs reach
    from start states with entries up to ``state_bound``, on inputs of the set that ``input_bound`` declares. Both are
    evaluated in evaluation mode from the stored weights, in exact arithmetic or in float64; rounding is part of the
    bound, so none is below about 1e-14. The bounds of a cell without a ``tube`` are the worst case.

    Args:
        recurrent: A recurrent module (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, a cell, or a registered module), windowed
            or not.
        inputs: Windows of inputs as the module takes them: ``(batch, window, features)`` with ``batch_first``,
            ``(window, batch, features)`` without it and for a cell, ``(window, features)`` for one window. Those of a
            bidirectional module have ``2 k - 1`` inputs, for the output in the middle.
        state_bound: Largest entry of any part of a start state, see :func:`~lightning_stable.certify`.
        input_bound: What is known about the inputs *before* the window, and about those in it, see
            :func:`~lightning_stable.certify`. Cells whose states are bounded by themselves need none: tanh RNNs, GRUs.

    Returns:
        One bound per window, shape ``(batch,)``, or ``()`` for one window that is not batched; float64, infinite where
        numbers overflow.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the module is not recurrent, inputs do not fit it or lie outside of their set, its states have no
            bound, or an adapter has neither a tube nor a comparison map.
    """
    checks.module("recurrent", recurrent)
    checks.real_tensor("inputs", inputs)
    state_bound = checks.number("state_bound", state_bound, "[0, inf)")
    recurrences = recurrences_of(recurrent)
    check_finite(recurrences)
    windows = _windows(recurrences, inputs, batch_first=bool(getattr(recurrent, "batch_first", False)))
    sources = resolve_sources(recurrent, recurrences, input_bound, state_bound=state_bound)
    layers = list(walk_layers(recurrences, sources, state_bound, training=False))
    _check_inside(layers, windows)
    if all(recurrence.has_tube for recurrence in recurrences):
        bounds = tube_bounds(enclose(layers), windows)
    else:
        bounds = _worst_case(recurrences, sources, state_bound, windows)
    return bounds if inputs.dim() == 3 else bounds[0]


def enclose(layers: Sequence[Layer]) -> list[Enclosed]:
    """Return the recurrences of a module on enclosures, in float64.

    Raises:
        ValueError: If nothing bounds the states of a layer.
    """
    directions = 1 + _is_mirrored([layer.recurrence for layer in layers])
    return [Enclosed(layer.recurrence, layer.weights, premises_of(layer)[0], directions) for layer in layers]


def premises_of(layer: Layer) -> tuple[Premises, str]:
    """Return what the tube of a layer starts from, and what that is worth.

    Raises:
        ValueError: If nothing bounds the states.
    """
    recurrence, weights, state_bound = layer.recurrence, layer.weights, layer.state_bound
    box, guarantee = _box(layer)
    if box is None:
        reason = (
            "declare `input_bound`, the set of its inputs"
            if layer.inputs is None
            else "with these weights and inputs its states can grow without limit; project it with "
            "lightning_stable.project_, or implement `state_box` of its adapter"
        )
        raise ValueError(
            "A tube must start from bounded states. Got none for the "
            f"{recurrence.cell} recurrence {recurrence.name!r}: {reason}."
        )
    readout = recurrence.readout(weights)
    if readout is not None:  # the state of a run has the output in place of what it is read from
        box = ((readout.abs() @ box[0]).clamp(min=state_bound), *box[1:])
    metric = None
    if recurrence.tube_norm is not None:
        contraction = recurrence.contraction(weights, layer.drive, norm=recurrence.tube_norm, state_bound=state_bound)
        metric = _metric(contraction, weights["weight_hh"])
    return Premises(tuple(tuple(part.tolist()) for part in box), metric), guarantee


def _metric(contraction: Contraction, hidden: Tensor) -> Metric:
    (scale,), (entries,), form = contraction.scales, contraction.entries, contraction.form
    rows = hidden * scale
    reach = torch.linalg.vector_norm(rows, dim=1) if form is None else linalg.dual_row_norms(rows, form)
    return Metric(
        contraction.rate.item(),
        scale=tuple(scale.tolist()),
        entries=tuple(entries.tolist()),
        reach=tuple((reach * linalg.inflation(len(scale))).tolist()),
        stretch=contraction.stretch.item(),
        gain=contraction.gain().item(),
    )


def is_bounded(layer: Layer) -> bool:
    """Return whether a tube of the layer has a box to start from."""
    return _box(layer)[0] is not None


def _box(layer: Layer) -> tuple[State | None, str]:
    """Return a bound on every state of a run, in the parts of the certificate's state, and what it is worth."""
    recurrence, weights = layer.recurrence, layer.weights
    rows = torch.full_like(recurrence.driven_rows(weights)[:, 0], torch.inf)
    everything = recurrence.state_box(weights, Interval(-rows, rows), layer.state_bound), "guaranteed"
    known = everything
    if layer.drive is not None:
        known = recurrence.state_box(weights, layer.drive, layer.state_bound), layer.guarantee
    # As for the layer above (Layer.output): what is worth less is used where nothing holds without it.
    boxes = (known, everything) if layer.guarantee == "guaranteed" else (everything, known)
    for box, guarantee in boxes:
        if box is not None and all(bool((part < _UNBOUNDED).all()) for part in box):  # not so for NaN
            return box, guarantee
    return None, "none"


def tube_bounds(tubes: Sequence[Enclosed], inputs: Tensor) -> Tensor:
    """Return the bounds of :func:`certify_windows`, shape ``(batch,)``.

    Args:
        tubes: The directed layers of a module, by layer, forward before backward.
        inputs: Windows, shape ``(places, batch, features)``.
    """
    # On a CPU the intervals of a block stay in its caches.
    blocks = torch.split(inputs, _CPU_BLOCK if inputs.device.type == "cpu" else inputs.shape[1], dim=1)
    # An overflow bounds nothing.
    return torch.cat([_tube_bounds(tubes, block.contiguous()) for block in blocks]).nan_to_num(torch.inf, torch.inf)


def _tube_bounds(tubes: Sequence[Enclosed], inputs: Tensor) -> Tensor:
    depths = [list(depth) for _, depth in groupby(tubes, key=lambda tube: tube.layer)]
    middle = len(inputs) // 2 if len(depths[0]) > 1 else len(inputs) - 1
    places: Sequence[Tensor] = inputs.unbind(0)
    for depth, layers in enumerate(depths):
        top = depth + 1 == len(depths)
        outputs, spreads = [], []
        for layer in layers:
            order = slice(None, None, -1 if layer.direction == "backward" else 1)
            if top:
                (state,) = deque(_scan(layer, places[order][: middle + 1]), maxlen=1)
                spreads.append(layer.spread(state))
            else:
                outputs.append([layer.output(state) for state in _scan(layer, places[order])][order])
        if top:
            return euclidean(torch.stack(spreads, dim=-1))
        places = [torch.cat(both, dim=-1) for both in zip(*outputs, strict=True)]
    raise AssertionError("a module has at least one layer")


def _scan(layer: Enclosed, places: Sequence[Tensor]) -> Iterator[State]:
    """Yield the states one by one: what is dropped leaves its place in the caches."""
    state = layer.initial_state(places[0])
    for inputs in places:
        state = layer.step_on(inputs, state)
        yield state


def _worst_case(recurrences: Sequence[Recurrence], sources: Sources, state_bound: float, windows: Tensor) -> Tensor:
    (bounds,) = window_bounds(recurrences, sources, state_bound=state_bound)
    if bounds.guarantee == "none":
        first = recurrences[0]
        raise ValueError(
            "A recurrence must have a tube, or a comparison map and bounded states. Got the "
            f"{first.cell} recurrence {first.name or 'the module'!r}, for which no window is certified: implement "
            f"`tube`, or `comparison` and `state_box`, of its adapter {type(first).__name__}."
        )
    places = len(windows)
    return bounds.errors(places // 2 + 1 if _is_mirrored(recurrences) else places)[-1:].repeat(windows.shape[1])


def _is_mirrored(recurrences: Sequence[Recurrence]) -> bool:
    return any(recurrence.direction == "backward" for recurrence in recurrences)


def _windows(recurrences: Sequence[Recurrence], inputs: Tensor, *, batch_first: bool) -> Tensor:
    """Return windows as ``(places, batch, features)`` in float64."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`inputs` must be a tensor of windows, all equally long. Got {type(inputs).__name__}.")
    features = recurrences[0].input_size
    if inputs.dim() not in (2, 3) or inputs.shape[-1] != features or 0 in inputs.shape:
        shape = "(batch, window, {})" if batch_first else "(window, batch, {})"
        raise ValueError(
            f"`inputs` must be windows of shape {shape.format(features)}, or (window, {features}) for one. "
            f"Got {tuple(inputs.shape)}."
        )
    weight = next(iter(recurrences[0].parameters().values()))
    windows = inputs.detach().to(device=weight.device, dtype=torch.float64)
    if not torch.stack(torch.aminmax(windows)).isfinite().all():
        raise ValueError("`inputs` must be finite. Got NaN or Inf.")
    windows = windows.unsqueeze(1) if inputs.dim() == 2 else windows.transpose(0, 1) if batch_first else windows
    if _is_mirrored(recurrences) and len(windows) % 2 == 0:
        raise ValueError(
            "`inputs` of a bidirectional module must be windows of 2 k - 1 inputs, for the output in the middle. "
            f"Got {len(windows)}."
        )
    return windows


def _check_inside(layers: Sequence[Layer], windows: Tensor) -> None:
    """Check that the inputs of the window are of the set that is declared for those before it."""
    for layer in layers:
        if layer.source is None or layer.recurrence.layer or not layer.recurrence.needs_drive:
            continue
        excess = layer.source.excess(windows).item()
        if excess > 0:
            raise ValueError(
                f"`inputs` must be of the declared set, {layer.source.describe()}. Got some outside by {excess:.3g}; "
                "declare an `input_bound` that holds for all inputs."
            )
