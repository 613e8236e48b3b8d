"""Truncated evaluation, forward and backward, against naive windows and torch's whole recurrence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Comparison, compared, duration
from lightning_stable import truncate

Function = Callable[[Tensor], Any]
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# Time, batch, units, window: a long sequence and those of a language model; parallel windows are made for GPUs.
SHAPES = ((256, 20, 128, 25), (35, 20, 200, 10), (35, 20, 200, 25))
GPU_SHAPES = ((1024, 8, 256, 25), *SHAPES)


def naive_windows(layer: nn.RNNBase, inputs: Tensor, window: int) -> Tensor:
    """Run every whole window through torch's layer as a separate sequence; exact."""
    time, batch, features = inputs.shape
    head = layer(inputs[:window])[0]
    windows = inputs[1:].unfold(0, window, 1).permute(3, 0, 1, 2).reshape(window, (time - window) * batch, features)
    tail: Tensor = layer(windows)[0][-1].view(time - window, batch, -1)
    return torch.cat((head, tail))


def every_window(layer: nn.RNNBase, inputs: Tensor, window: int) -> Tensor:
    """Do the same in fewer lines: with zeros in front, and ``time * batch`` windows of one length.

    It is not exact before the first whole window, where biases make states out of the zeros.
    """
    time, batch, features = inputs.shape
    padded = torch.cat((inputs.new_zeros(window - 1, batch, features), inputs))
    windows = padded.unfold(0, window, 1).permute(3, 0, 1, 2).reshape(window, time * batch, features)
    outputs: Tensor = layer(windows)[0][-1].view(time, batch, -1)
    return outputs


def truncation_against_naive(
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES, rounds: int = 9, device: str = "cpu"
) -> Iterator[Comparison]:
    """Time truncated layers against other evaluations, all in turn; one row for each pair.

    ``naive windows`` lays out the windows behind the first whole one and runs what is before as it stands; ``every
    window`` lays out all of them, ``time * batch``. ``matrix products`` are those of the recurrence alone, in blocks
    as large as ours: the ratio to them is the fraction of that floor.

    Args:
        shapes: Shapes as ``(time, batch, units, window)``.
        rounds: The number of times that every side is measured.
        device: ``cpu`` or ``cuda``.
    """
    for time, batch, units, window in shapes:
        for name, cell in CELLS.items():
            layer, inputs = case(cell, time, batch, units, device=device)
            kept, recomputed = (truncate(layer, window, share=True, recompute=r) for r in (False, True))
            naive = partial(naive_windows, layer, window=window)
            error = _error(naive(inputs), kept(inputs)[0])
            sides: dict[str, Callable[[], object]] = {
                "kept": partial(train, kept, inputs),
                "recomputed": partial(train, recomputed, inputs),
                "naive windows": partial(train, naive, inputs),
                "every window": partial(train, partial(every_window, layer, window=window), inputs),
                "whole recurrence": partial(train, layer, inputs),
                "matrix products": partial(products, layer, (time - window) * batch, window),
            }
            durations = in_turn(sides, rounds, device)
            label = f"truncated {name} T={time} k={window}"
            for variant in ("kept", "recomputed"):
                for baseline in ("naive windows", "every window", "whole recurrence", "matrix products"):
                    pairs = list(zip(durations[baseline], durations[variant], strict=True))
                    difference = error if baseline == "naive windows" else float("nan")
                    yield compared(f"{label} {variant}", units, device, baseline, pairs, difference)


def in_turn(sides: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the durations of all sides, one after the other in every round; a first round does not count."""
    for function in sides.values():
        function()
    durations: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            durations[name].append(duration(function, device))
    return durations


@torch.no_grad()
def products(layer: nn.RNNBase, rows: int, window: int, block: int = 500) -> None:
    """Compute the recurrent products of a forward and backward pass; the first step of a window has none."""
    weight = layer.get_parameter("weight_hh_l0")
    for low in range(0, rows, block):
        states = weight.new_ones(min(block, rows - low), weight.shape[1])
        for _ in range(window - 1):
            gates = states @ weight.t()
            torch.mm(gates, weight)
            torch.mm(states.t(), gates)


def peak_memory(time: int = 256, batch: int = 20, units: int = 128, window: int = 25) -> Iterator[tuple[str, float]]:
    """Measure the memory, in MiB, that a forward and backward pass of an LSTM adds, each side in a new process."""
    for side in ("naive", "windowed"):
        command = [sys.executable, "-m", "benchmarks.truncation", side, *map(str, (time, batch, units, window))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield side, float(done.stdout)


def _added_memory(side: str, time: int, batch: int, units: int, window: int) -> float:
    torch.set_num_threads(1)
    layer, inputs = case(nn.LSTM, time, batch, units)
    small = inputs[: window + 1].detach().requires_grad_()
    twin = truncate(layer, window, share=True)
    function: Function = partial(naive_windows, layer, window=window) if side == "naive" else twin
    train(function, small)  # load whatever is loaded once
    before = _peak_resident()
    train(function, inputs)
    return (_peak_resident() - before) / 1024


def _peak_resident() -> int:
    """Return the peak in KiB, on Linux, where getrusage reports that of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def case(
    cell: type[nn.RNNBase], time: int, batch: int, units: int, layers: int = 1, device: str = "cpu"
) -> tuple[nn.RNNBase, Tensor]:
    """Return a layer with random weights, and inputs with as many features as it has units."""
    torch.manual_seed(0)
    layer = cell(units, units, layers)  # type: ignore[arg-type]
    return layer.to(device), torch.randn(time, batch, units).to(device).requires_grad_()


def train(function: Function, inputs: Tensor) -> None:
    """Run forward and backward."""
    output = function(inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()


def _error(reference: Tensor, ours: Tensor) -> float:
    relative: float = ((ours - reference).norm() / reference.norm()).item()
    return relative


if __name__ == "__main__":
    print(_added_memory(sys.argv[1], *map(int, sys.argv[2:])))
