"""Truncated evaluation, forward and backward, against naive windows and torch's whole recurrence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Comparison, interleave
from lightning_stable import truncate, truncation_profile

Function = Callable[[Tensor], Any]
_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
_PROFILE_WINDOWS = 32


def naive_windows(layer: nn.RNNBase, inputs: Tensor, window: int) -> Tensor:
    """Every window laid out as a sequence of its own and run through torch's layer, ``time * batch`` of them."""
    time, batch, features = inputs.shape
    head = layer(inputs[:window])[0]
    windows = inputs[1:].unfold(0, window, 1).permute(3, 0, 1, 2).reshape(window, (time - window) * batch, features)
    tail: Tensor = layer(windows)[0][-1].view(time - window, batch, -1)
    return torch.cat((head, tail))


def truncation_against_naive(
    shapes: tuple[tuple[int, int, int, int], ...] = ((256, 20, 128, 25), (35, 20, 200, 10), (35, 20, 200, 25)),
    seconds: float = 2.0,
) -> Iterator[Comparison]:
    """Shapes are ``(time, batch, units, window)``; the third side, torch's whole recurrence, is a row of its own."""
    for time, batch, units, window in shapes:
        for name, cell in _CELLS.items():
            layer, inputs = _case(cell, time, batch, units)
            label = f"truncated {name} T={time} k={window}"
            for variant, recompute in (("kept", False), ("recomputed", True)):
                twin = truncate(layer, window, share=True, recompute=recompute)
                error = _error(naive_windows(layer, inputs, window), twin(inputs)[0])
                naive = partial(naive_windows, layer, window=window)
                times = interleave(partial(_train, naive, inputs), partial(_train, twin, inputs), seconds)
                yield _row(f"{label} {variant}", units, "naive windows", times, error)
            times = interleave(partial(_train, layer, inputs), partial(_train, twin, inputs), seconds)
            yield _row(label, units, "whole recurrence", times, float("nan"))


def profile_against_runs(
    units: int = 128, time: int = 128, batch: int = 8, seconds: float = 3.0
) -> Iterator[Comparison]:
    """All windows up to 32 in one pass against a windowed run for each."""
    for name, cell in _CELLS.items():
        layer, inputs = _case(cell, time, batch, units)
        inputs = inputs.detach()
        twins = [truncate(layer, window, share=True) for window in range(1, _PROFILE_WINDOWS + 1)]

        runs = partial(_one_run_each, layer, inputs, twins)
        profile = partial(truncation_profile, layer, inputs, _PROFILE_WINDOWS)
        error = (profile().max_error - torch.tensor(runs(), dtype=torch.float64)).abs().max().item()
        times = interleave(runs, profile, seconds)
        yield _row(f"profile {name} K={_PROFILE_WINDOWS}", units, "one run per window", times, error)


@torch.no_grad()
def _one_run_each(layer: nn.Module, inputs: Tensor, twins: Sequence[nn.Module]) -> list[float]:
    whole = layer(inputs)[0]
    return [(twin(inputs)[0] - whole).norm(dim=-1).max().item() for twin in twins]


def peak_memory(time: int = 256, batch: int = 20, units: int = 128, window: int = 25) -> Iterator[tuple[str, float]]:
    """Peak resident memory, in MiB, that one forward and backward pass of an LSTM adds, a process for each side."""
    for side in ("naive", "windowed"):
        command = [sys.executable, "-m", "benchmarks.truncation", side, *map(str, (time, batch, units, window))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield side, float(done.stdout)


def _added_memory(side: str, time: int, batch: int, units: int, window: int) -> float:
    torch.set_num_threads(1)
    layer, inputs = _case(nn.LSTM, time, batch, units)
    small = inputs[: window + 1].detach().requires_grad_()
    twin = truncate(layer, window, share=True)
    function: Function = partial(naive_windows, layer, window=window) if side == "naive" else twin
    _train(function, small)  # load whatever is loaded once
    before = _peak_resident()
    _train(function, inputs)
    return (_peak_resident() - before) / 1024


def _peak_resident() -> int:
    """In KiB; Linux, where getrusage would report the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _case(cell: type[nn.RNNBase], time: int, batch: int, units: int) -> tuple[nn.RNNBase, Tensor]:
    torch.manual_seed(0)
    return cell(units, units), torch.randn(time, batch, units, requires_grad=True)  # type: ignore[call-arg, arg-type]


def _train(function: Function, inputs: Tensor) -> None:
    output = function(inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()


def _error(reference: Tensor, ours: Tensor) -> float:
    relative: float = ((ours - reference).norm() / reference.norm()).item()
    return relative


def _row(name: str, units: int, baseline: str, times: tuple[float, float], error: float) -> Comparison:
    return Comparison(name, units, "cpu", baseline, *times, times[0] / times[1], error)


if __name__ == "__main__":
    print(_added_memory(sys.argv[1], *map(int, sys.argv[2:])))
