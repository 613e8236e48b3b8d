"""Certified truncation: how far a run that restarted from zero ``k`` steps ago is from the whole run.

At the restart the states differ by no more than the box of the states. A recurrence's comparison map ``T`` bounds
every entry of the difference one step later, its contraction rates bound norms of it (that of the certificate, and
sharper ones), and all are cut back by each other after every step (an entry is at most that of the worst difference of
the same norm). All
layers restart together: the input error of a layer is the output error of the layer below after the same number of
steps. It is carried entry by entry and as a Euclidean norm, and a layer uses what moves its states less.

The output of a bidirectional stack at ``t`` is that of the whole stack on positions ``t - k + 1`` to ``t + k - 1``,
from zero at both ends. Counted from the left end, a forward run has made ``i`` steps at position ``i`` and a backward
run ``2 k - i``; so the layers above read large errors near both ends, and every window needs its own iteration.

The bounds speak of exact arithmetic; in float32 the outputs differ by a rounding error more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.recurrence.base import Comparison, Contraction, OutputComparison, Recurrence, State
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability.inputs.joint import fewer_scenarios
from lightning_stable.stability.inputs.resolve import Layer, Sources, walk_layers
from lightning_stable.stability.inputs.sets import weakest_guarantee

_SPAN = 32
# Windows of bidirectional stacks cost as many steps as they are long, each.
_STACKED_LIMIT = 512


class Errors(NamedTuple):
    """Bounds on differences after 1, 2, ... steps.

    Attributes:
        entries: On their entries, shape ``(steps, windows, size)``.
        norms: On their Euclidean norms, shape ``(steps, windows)``; never above that of the entries' bounds.
    """

    entries: Tensor
    norms: Tensor


class ContractingNorm(NamedTuple):
    """A norm in which a layer contracts, and what leads into it and out of it."""

    contraction: Contraction
    entries: State  # the largest entries of a state difference whose norm is 1
    stretch: Tensor  # see Contraction.stretch
    gain: Tensor  # into the Euclidean norm of the output
    input_gain: Tensor  # of the Euclidean norm of an input difference into the norm

    def of(self, bounds: State) -> Tensor:
        """Return a bound on the norm of differences with entries up to ``bounds``, shapes ``(..., size)``."""
        return _scaled(partial(self.contraction.largest, stretch=self.stretch), bounds)


class DirectedLayer(NamedTuple):
    """What the iteration needs of one directed layer, in float64 on the CPU."""

    norms: tuple[ContractingNorm, ...]
    box: State | None
    comparison: Comparison | None
    readout: Tensor | None
    output: OutputComparison | None
    input_scale: float  # of dropout in front of the layer
    guarantee: str

    @classmethod
    def of(cls, layer: Layer, contraction: Contraction) -> DirectedLayer:
        """Derive boxes and maps from a snapshot of the weights."""
        recurrence, state_bound, drive, guarantee = layer.recurrence, layer.state_bound, layer.drive, layer.guarantee
        weights = {role: value.cpu() for role, value in layer.weights.items()}
        drive = drive and Interval(drive.low.cpu(), drive.high.cpu())
        # As for the layer above (Layer.output): what is worth less is used where nothing holds without it.
        if guarantee != "guaranteed" and recurrence.state_box(weights, None, state_bound) is not None:
            drive, guarantee = None, "guaranteed"
        pairing = recurrence.pairing(weights)
        if drive is not None and pairing is not None:
            drive = fewer_scenarios(drive, pairing)  # the map is applied at every step of a window
        box, readout = recurrence.state_box(weights, drive, state_bound), recurrence.readout(weights)
        output = recurrence.output_comparison(weights, drive, state_bound)
        contractions = recurrence.window_contractions(weights, contraction.cpu())
        return cls(
            norms=tuple(
                ContractingNorm(
                    contraction=one,
                    entries=one.entries,
                    stretch=one.stretch,
                    gain=torch.full_like(one.rate, torch.inf) if output is not None else one.gain(readout),
                    input_gain=recurrence.input_gain(weights, one),
                )
                for one in contractions
                if one.rate < 1
            ),
            box=box,
            comparison=recurrence.comparison(weights, drive, state_bound),
            readout=readout,
            output=output,
            input_scale=1 / (1 - layer.dropout),
            guarantee=guarantee,
        )

    def is_bounded(self, depth: int) -> bool:
        """Return whether the iteration starts and contracts; a layer that reads errors needs a comparison map too."""
        contracts = bool(self.norms) and (depth == 0 or self.comparison is not None)
        return contracts and self.box is not None and all(bool(torch.isfinite(part).all()) for part in self.box)

    def run(self, errors: Errors | None, steps: int) -> Errors:
        """Return bounds on the output error after 1, 2, ..., ``steps`` steps, of many windows at once.

        Args:
            errors: Bounds on the input error; None for equal inputs, the same in all windows.
            steps: Number of steps.

        Returns:
            The bounds; ``windows`` is 1 for equal inputs.
        """
        assert self.box is not None
        largest = tuple(2 * part for part in self.box)  # the difference of any two admissible states
        inputs: Tensor | None = None
        pushes: list[Tensor] | None = None
        if errors is not None:
            assert self.comparison is not None
            inputs, sizes = (bounds * self.input_scale for bounds in errors)
            # A step of both runs on one input contracts; then one of them moves to the other input.
            moved = self.comparison(tuple(torch.zeros_like(part) for part in self.box), inputs)
            # Where the gain is infinite and the size 0 their product is NaN.
            pushes = [norm.of(moved).fmin(norm.input_gain * sizes) for norm in self.norms]
        state = tuple(part.expand(1 if inputs is None else inputs.shape[1], -1) for part in self.box)
        radii = [norm.of(state) for norm in self.norms]
        entries, norms = [], []
        for step in range(steps):
            pushed = None if inputs is None else inputs[step]
            read = None if self.output is None else self.output(state, pushed)
            after = largest if self.comparison is None else self.comparison(state, pushed)
            state = tuple(map(torch.minimum, after, largest))
            for index, norm in enumerate(self.norms):
                radii[index] = norm.contraction.rate * radii[index] + (0 if pushes is None else pushes[index][step])
                capped = (entry * radii[index][:, None] for entry in norm.entries)
                state = tuple(map(torch.minimum, capped, state))
            radii = [radius.minimum(norm.of(state)) for radius, norm in zip(radii, self.norms, strict=True)]
            if read is None:
                read = state[0] if self.readout is None else state[0] @ self.readout.abs().mT
            entries.append(read)
            size = _scaled(_euclidean, (read,))
            for radius, norm in zip(radii, self.norms, strict=True):
                size = size.fmin(norm.gain * radius)  # NaN where the gain is infinite and the radius 0
            norms.append(size)
        return Errors(torch.stack(entries), torch.stack(norms))


def _euclidean(state: State) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(state[0], dim=-1)
    return norm


def _scaled(norm: Callable[[State], Tensor], state: State) -> Tensor:
    """Return ``norm(s / m) m`` with the largest entry ``m`` of a nonnegative state ``s``: no squares underflow to 0."""
    largest = torch.stack([part.amax(-1) for part in state]).amax(0)
    factor = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    size = norm(tuple(part / factor[..., None] for part in state)) * factor
    return size.where(largest.isfinite(), largest)


class WindowBounds:
    """Certified truncation errors of one recurrent module, all layers and directions together.

    For every admissible input and every run from zero (or from states up to ``state_bound``) the output of the module
    and that of its ``k``-window form, which restarts from zero ``k`` steps earlier, differ by at most
    ``errors(K)[k - 1]`` in the Euclidean norm. Where the run began less than ``k`` steps earlier, the window begins
    with it, in its initial state. Dropout between layers has the same mask in both. The bounds belong to the weights
    at the time of certification; nothing is computed before it is asked for.

    Attributes:
        name: Qualified name of the recurrent module.
        is_revoked: Whether a run left the premises of the bounds, see :meth:`StabilityReport.revoked`.
    """

    def __init__(self, name: str, layers: Sequence[Sequence[partial[DirectedLayer]]]) -> None:
        self.name = name
        self.is_revoked = False
        self._pending: Sequence[Sequence[partial[DirectedLayer]]] | None = layers
        self._layers: list[list[DirectedLayer]] = []

    @property
    def layers(self) -> list[list[DirectedLayer]]:
        """Directed layers by depth, forward before backward."""
        if self._pending is not None:
            self._layers, self._pending = [[make() for make in depth] for depth in self._pending], None
        return self._layers

    def __getstate__(self) -> dict[str, Any]:
        # Copies carry what follows from the weights, not the module they came from.
        return {"name": self.name, "is_revoked": self.is_revoked, "_pending": None, "_layers": self.layers}

    def revoked(self) -> WindowBounds:
        """Return the bounds of a module whose premises do not hold: there are none."""
        void = copy.copy(self)
        void.is_revoked = True
        return void

    @property
    def guarantee(self) -> str:
        """The weakest of the layers' guarantees; ``"none"`` if there is no finite bound or the premises do not hold."""
        if self.is_revoked or not all(
            layer.is_bounded(depth) for depth, layers in enumerate(self.layers) for layer in layers
        ):
            return "none"
        return weakest_guarantee(layer.guarantee for layers in self.layers for layer in layers)

    def errors(self, max_window: int) -> Tensor:
        """Return bounds for the windows 1, 2, ..., ``max_window``, shape ``(max_window,)``, float64.

        All are infinite unless every layer has a rate below 1, a bound on its states, and, above another layer, a
        comparison map. Bidirectional stacks cost a number of steps quadratic in ``max_window``, all others a linear.

        Raises:
            ValueError: If ``max_window`` is not a positive integer.
        """
        max_window = checks.integer("max_window", max_window)
        if self.guarantee == "none":
            return torch.full((max_window,), torch.inf, dtype=torch.float64)
        spans = self._spans(1, max_window) if self._is_mirrored else [(1, max_window)]
        return torch.cat([self._errors(*span) for span in spans])

    def required_window(self, tolerance: float, limit: int = 10_000, *, at_least: int = 1) -> int | None:
        """Return the smallest window whose certified error is at most ``tolerance``.

        Args:
            tolerance: Bound on the Euclidean norm of the output error.
            limit: Largest window tried; bidirectional stacks try 512 at most.
            at_least: Smallest window tried.

        Returns:
            The window; None if nothing is certified or the limit is reached.

        Raises:
            ValueError: If ``tolerance`` is not positive and finite, or another argument is not positive.
        """
        tolerance = checks.number("tolerance", tolerance, "(0, inf)")
        limit, at_least = checks.integer("limit", limit), checks.integer("at_least", at_least)
        if self.guarantee == "none":
            return None
        for first, last in self._spans(at_least, min(limit, _STACKED_LIMIT) if self._is_mirrored else limit):
            small = (self._errors(first, last) <= tolerance).nonzero()
            if len(small):
                return first + int(small[0])
        return None

    @property
    def _is_mirrored(self) -> bool:
        """Whether a layer reads errors of both directions, one of which grows with every step."""
        return len(self.layers) > 1 and len(self.layers[0]) > 1

    def _spans(self, first: int, limit: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of windows that are computed together; the iteration starts over with every span."""
        while first <= limit:
            last = min(limit, first - 1 + (_SPAN if self._is_mirrored else max(_SPAN, first)))
            yield first, last
            first = last + 1

    def _errors(self, first: int, last: int) -> Tensor:
        windows, mirrored = torch.arange(first, last + 1), self._is_mirrored
        inputs: Sequence[Errors | None] = [None] * len(self.layers[0])
        for depth, layers in enumerate(self.layers):
            is_top = depth + 1 == len(self.layers)
            steps = last if is_top or not mirrored else 2 * last - 1
            runs = [layer.run(errors, steps) for layer, errors in zip(layers, inputs, strict=True)]
            if is_top:
                # The output is that after k steps of either direction, in stacks with a row per window.
                rows = torch.arange(len(windows)) if mirrored else 0
                both = torch.stack([run.norms[windows - 1, rows] for run in runs])
                # An overflow times 0 on the way leaves no bound.
                norms = _scaled(_euclidean, (both.movedim(0, -1),))
                return norms.where(~norms.isnan(), torch.inf)
            inputs = _read_both(runs, windows) if mirrored else runs
        raise AssertionError("a module has at least one layer")


def _read_both(outputs: Sequence[Errors], windows: Tensor) -> list[Errors]:
    """Return the input errors of the two directions of the next layer, each in the order of its own steps.

    Args:
        outputs: Output errors of the directions, of each window or of one for all.
        windows: The windows ``k``, shape ``(windows,)``. Where one direction has made ``i`` steps the other has made
            ``2 k - i``. Windows shorter than the longest get values beyond their end, which nothing reads.
    """
    last = len(outputs[0].entries)
    others = (2 * windows - torch.arange(1, last + 1)[:, None]).clamp(1, last) - 1
    forward, backward = (
        Errors(run.entries.expand(-1, len(windows), -1), run.norms.expand(-1, len(windows))) for run in outputs
    )
    rows = torch.arange(len(windows))

    def read(first: Errors, second: Errors) -> Errors:
        return Errors(torch.cat((first.entries, second.entries), -1), torch.hypot(first.norms, second.norms))

    def mirrored(run: Errors) -> Errors:
        return Errors(run.entries[others, rows], run.norms[others, rows])

    return [read(forward, mirrored(backward)), read(mirrored(forward), backward)]


@torch.no_grad()
def window_bounds(
    recurrences: Sequence[Recurrence],
    sources: Sources,
    norm: str | None = None,
    state_bound: float = 1.0,
    training: bool | None = False,
) -> tuple[WindowBounds, ...]:
    """Return the window bounds of recurrent modules whose input sets are known.

    Args:
        recurrences: All recurrences of those modules, in the order of
            :func:`~lightning_stable.recurrence.find_recurrences`.
        sources: Their input sets, see :func:`~lightning_stable.stability.inputs.resolve.resolve_sources`.
        norm: As in :func:`~lightning_stable.certify`.
        state_bound: As in :func:`~lightning_stable.certify`.
        training: Whether dropout between layers is active; None asks each module.

    Returns:
        One per module, in the same order.

    Raises:
        ValueError: If a cell has no such ``norm``.
    """
    layers = walk_layers(recurrences, sources, state_bound, training)
    return by_module([(layer, layer.contraction(norm)) for layer in layers])


def by_module(layers: Iterable[tuple[Layer, Contraction]]) -> tuple[WindowBounds, ...]:
    """Return the bounds of each recurrent module, from its directed layers in their order.

    Boxes and maps are derived when a window is asked for: the weights, and the drives that the contractions come
    from, must not change any more.
    """
    return tuple(
        WindowBounds(
            name,
            [
                [partial(DirectedLayer.of, *pair) for pair in depth]
                for _, depth in groupby(of_module, key=lambda pair: pair[0].recurrence.layer)
            ],
        )
        for name, of_module in groupby(layers, key=lambda pair: pair[0].recurrence.module_name)
    )
