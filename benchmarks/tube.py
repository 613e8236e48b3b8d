"""What a bound for every window costs, against the windowed forward pass and the program without bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.timing import Comparison, compared
from benchmarks.truncation import in_turn
from lightning_stable import certify_windows, project_
from lightning_stable.export.bounds import bounded
from lightning_stable.export.forms import BatchForm
from lightning_stable.recurrence import recurrences_of

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# Windows, units, window.
SHAPES = ((512, 128, 40),)
BOUND = 1.0


def tube(shapes: tuple[tuple[int, int, int], ...] = SHAPES, rounds: int = 7) -> Iterator[Comparison]:
    """Time ``certify_windows`` and a form with bounds, each in turn with the same without bounds.

    Both sides of the first pair are in float64 and step the cell as its adapter does; those of the second are what is
    exported.

    Args:
        shapes: Shapes as ``(windows, units, window)``.
        rounds: The number of times that every side is measured.
    """
    for windows, units, window in shapes:
        for name, cell in CELLS.items():
            torch.manual_seed(0)
            layer = cell(units, units)
            project_(layer, 0.95, input_bound=BOUND)
            inputs = torch.rand(window, windows, units) * 2 - 1
            wide, wide_inputs = cell(units, units).double(), inputs.double()
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
            seconds = in_turn(sides, rounds)
            for variant, baseline in (("tube", "windows"), ("program with bounds", "program")):
                pairs = list(zip(seconds[baseline], seconds[variant], strict=True))
                yield compared(f"{variant} {name} k={window}", units, "cpu", baseline, pairs, float("nan"))


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
