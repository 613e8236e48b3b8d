"""What a bound for every window costs, against the windowed forward pass and the program without bounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import Comparison, compared
from benchmarks.truncation import in_turn
from lightning_stable import certify_windows, project_
from lightning_stable.export import export
from lightning_stable.export.bounds import bounded
from lightning_stable.export.forms import BatchForm
from lightning_stable.recurrence import recurrences_of

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# Windows, units, window.
SHAPES = ((512, 128, 40),)
BOUND = 1.0


def tube(
    shapes: tuple[tuple[int, int, int], ...] = SHAPES, rounds: int = 7, device: str = "cpu"
) -> Iterator[Comparison]:
    """Time ``certify_windows`` and a form with bounds, each in turn with the same without bounds.

    Both sides of the first pair are in float64 and step the cell as its adapter does; those of the second are what is
    exported.

    Args:
        shapes: Shapes as ``(windows, units, window)``.
        rounds: The number of times that every side is measured.
        device: ``cpu`` or ``cuda``.
    """
    for windows, units, window in shapes:
        for name, cell in CELLS.items():
            torch.manual_seed(0)
            layer = cell(units, units).to(device)
            project_(layer, 0.95, input_bound=BOUND)
            inputs = (torch.rand(window, windows, units) * 2 - 1).to(device)
            wide, wide_inputs = cell(units, units).to(inputs.double()), inputs.double()
            wide.load_state_dict(layer.state_dict())
            sequences = inputs[:, : max(1, windows // window)]
            plain = BatchForm(layer, window, batch_first=False)
            with_bounds = BatchForm(layer, window, bounded(layer, BOUND).premises, batch_first=False)
            sides: dict[str, Callable[[], object]] = {
                "tube": partial(certify_windows, wide, wide_inputs, input_bound=BOUND),
                "windows": partial(_windows, wide, wide_inputs),
                "program with bounds": partial(_without_gradients, with_bounds, sequences),
                "program": partial(_without_gradients, plain, sequences),
            }
            seconds = in_turn(sides, rounds, device)
            for variant, baseline in (("tube", "windows"), ("program with bounds", "program")):
                pairs = list(zip(seconds[baseline], seconds[variant], strict=True))
                yield compared(f"{variant} {name} k={window}", units, device, baseline, pairs, float("nan"))


def exported(
    shapes: tuple[tuple[int, int, int], ...] = ((64, 128, 16),), rounds: int = 9, cells: Sequence[str] = tuple(CELLS)
) -> Iterator[Comparison]:
    """Time ONNX programs with a bound beside every output in turn with the same without, on one thread.

    Args:
        shapes: Shapes as ``(time, units, window)``; there are 4 sequences.
        rounds: The number of times that every side is measured.
        cells: The names of the cells.
    """
    import onnxruntime  # of the extra `export`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for time, units, window in shapes:
        for name in cells:
            torch.manual_seed(0)
            layer = CELLS[name](units, units, batch_first=True)
            project_(layer, 0.95, input_bound=BOUND)
            inputs = (torch.rand(4, time, units) * 2 - 1).numpy()
            sides: dict[str, Callable[[], object]] = {}
            with tempfile.TemporaryDirectory() as folder:
                for side, bound in (("program", False), ("program with bounds", True)):
                    path = Path(folder, side.replace(" ", "-") + ".onnx")
                    export(layer, window, path, input_bound=BOUND, bound=bound)
                    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                    (entry,) = session.get_inputs()
                    sides[side] = partial(session.run, None, {entry.name: inputs})
                seconds = in_turn(sides, rounds)
            pairs = list(zip(seconds["program"], seconds["program with bounds"], strict=True))
            yield compared(f"ONNX with bounds {name} T={time} k={window}", units, "cpu", "ONNX", pairs, float("nan"))


@torch.no_grad()
def _windows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    (recurrence,) = recurrences_of(layer)
    state = recurrence.initial_state(inputs[0])
    for step in inputs:
        state = recurrence.step(step, state)
    return recurrence.output(state)


@torch.no_grad()
def _without_gradients(form: nn.Module, inputs: torch.Tensor) -> object:
    return form(inputs)
