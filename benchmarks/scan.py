"""Whole sequences of cells whose gates read the input alone, forward and backward, against a loop over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Comparison, compared
from benchmarks.truncation import in_turn, train
from lightning_stable import truncate
from lightning_stable.cells import MinGRU
from lightning_stable.cells.base import mix

# Time, batch, units.
SHAPES = ((512, 1, 64), (512, 8, 128), (512, 20, 200))
WINDOW = 25


def scan(
    shapes: tuple[tuple[int, int, int], ...] = SHAPES, rounds: int = 9, device: str = "cpu"
) -> Iterator[Comparison]:
    """Time a minGRU against a loop, as the other cells are run, and its windows against the minGRU.

    Args:
        shapes: Shapes as ``(time, batch, units)``.
        rounds: The number of times that every side is measured.
        device: ``cpu`` or ``cuda``.
    """
    for time, batch, units in shapes:
        torch.manual_seed(0)
        layer, inputs = MinGRU(units, units, device=device), torch.randn(time, batch, units, device=device)
        windows = truncate(layer, WINDOW, share=True)
        step_by_step = partial(loop, layer)
        error = float((step_by_step(inputs) - layer(inputs)[0]).detach().abs().max())
        durations = in_turn(
            {
                "loop": partial(train, step_by_step, inputs),
                "scan": partial(train, layer, inputs),
                "windows": partial(train, windows, inputs),
            },
            rounds,
            device,
        )
        for name, ours, baseline in (("scan", "scan", "loop"), (f"windows k={WINDOW}", "windows", "scan")):
            pairs = list(zip(durations[baseline], durations[ours], strict=True))
            difference = error if baseline == "loop" else float("nan")
            yield compared(f"mingru {name} T={time} B={batch}", units, device, baseline, pairs, difference)


def loop(layer: MinGRU, inputs: Tensor) -> Tensor:
    """Run step by step, with one product for all steps."""
    driven = F.linear(inputs, layer.get_parameter("weight_ih_l0"), layer.get_parameter("bias_ih_l0"))
    state, states = torch.zeros_like(driven[0, :, : layer.hidden_size]), []
    for now in driven.unbind(0):
        gate, candidate = now.chunk(2, 1)
        state = mix(torch.sigmoid(gate), candidate.tanh(), state)
        states.append(state)
    return torch.stack(states)
