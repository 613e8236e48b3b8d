"""Errors of all windows in one pass, against one windowed run for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import Comparison, compared
from benchmarks.truncation import CELLS, case, in_turn
from lightning_stable import truncate, truncation_profile

_WINDOWS = 32


def profile_against_runs(
    units: int = 128,
    time: int = 128,
    batch: int = 8,
    rounds: int = 7,
    cells: Sequence[str] = tuple(CELLS),
    device: str = "cpu",
) -> Iterator[Comparison]:
    """Time the errors of all windows up to 32; ``error`` is the largest difference of the measured errors."""
    for name in cells:
        layer, inputs = case(CELLS[name], time, batch, units, device=device)
        inputs = inputs.detach()
        twins = [truncate(layer, window, share=True) for window in range(1, _WINDOWS + 1)]
        runs = partial(_one_run_each, layer, inputs, twins)
        profile = partial(truncation_profile, layer, inputs, _WINDOWS)
        error = (profile().max_error - torch.tensor(runs(), dtype=torch.float64)).abs().max().item()
        seconds = in_turn({"runs": runs, "profile": profile}, rounds, device)
        pairs = list(zip(seconds["runs"], seconds["profile"], strict=True))
        yield compared(f"profile {name} K={_WINDOWS} T={time}", units, device, "one run per window", pairs, error)


@torch.no_grad()
def _one_run_each(layer: nn.Module, inputs: Tensor, twins: Sequence[nn.Module]) -> list[float]:
    whole = layer(inputs)[0]
    return [(twin(inputs)[0] - whole).norm(dim=-1).max().item() for twin in twins]
