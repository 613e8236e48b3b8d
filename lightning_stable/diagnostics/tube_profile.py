"""The tube over all windows of given sequences: what is certified for these inputs, for the truncation profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Recurrence
from lightning_stable.recurrence.enclosed import Enclosed
from lightning_stable.stability.inputs.resolve import Sources, walk_layers
from lightning_stable.stability.tube import enclose, is_bounded, tube_bounds
from lightning_stable.truncation.exact.layout import Layout
from lightning_stable.truncation.exact.stack import Stack, take

_CPU_ROWS = 256


def tube_profile(recurrences: Sequence[Recurrence], sources: Sources, layout: Layout, max_window: int) -> Tensor:
    """Return the largest tube bound of all whole windows of the sequences, by window, shape ``(max_window,)``, float64.

    Windows that reach over the beginning of a sequence are left out: nothing comes before them here. The values are NaN
    for windows longer than all sequences, for cells without a tube, and where nothing bounds the states.

    Args:
        recurrences: Those of one module, by layer, forward before backward.
        sources: Their input sets.
        layout: The sequences.
        max_window: The longest window.
    """
    bounds = torch.full((max_window,), torch.nan, dtype=torch.float64)
    layers = list(walk_layers(recurrences, sources, training=False))
    if not all(layer.recurrence.has_tube and is_bounded(layer) for layer in layers):
        return bounds
    tubes, inputs, valid = enclose(layers), layout.inputs.double(), layout.valid
    windows = _one_way if all(tube.direction == "forward" for tube in tubes) else _both_ways
    # On a CPU the intervals of a block of sequences stay in its caches.
    block = max(1, _CPU_ROWS // len(inputs)) if inputs.device.type == "cpu" else inputs.shape[1]
    for some, whole in zip(torch.split(inputs, block, dim=1), torch.split(valid, block, dim=1), strict=True):
        for index, spreads in enumerate(windows(tubes, some, whole, max_window)):
            if spreads.numel():
                # An overflow bounds nothing, and must not leave the place to the other blocks.
                largest = spreads.max().nan_to_num(torch.inf, torch.inf).cpu()
                bounds[index] = torch.fmax(bounds[index], largest)
    return bounds


def _one_way(tubes: list[Enclosed], inputs: Tensor, valid: Tensor, max_window: int) -> Iterator[Tensor]:
    """One sweep over all positions a window, as the profile itself; row ``r`` ends at position ``r``."""
    stack, driven = Stack(tuple(tubes)), tubes[0].drive(inputs)
    # An upper layer is asked for a state in the shape of enclosures.
    states = tuple(tube.initial_state(driven.unsqueeze(-2) if tube.layer else driven) for tube in tubes)
    for window in range(1, min(max_window, len(inputs)) + 1):
        states = stack.step(driven[window - 1 :], take(states, slice(0, len(inputs) - window + 1)))
        yield tubes[-1].spread(states[-1])[valid[window - 1 :]]


def _both_ways(tubes: list[Enclosed], inputs: Tensor, valid: Tensor, max_window: int) -> Iterator[Tensor]:
    for window in range(1, min(max_window, (len(inputs) + 1) // 2) + 1):
        places = 2 * window - 1
        rows = inputs.unfold(0, places, 1)[valid[places - 1 :]]  # (windows, features, places)
        yield tube_bounds(tubes, rows.permute(2, 0, 1)) if len(rows) else rows
