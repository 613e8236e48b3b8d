"""A recurrent model beside its truncations: their gradients, and their weights when they are trained side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_stable import project_
from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.truncation import truncate
from theory_experiments import BLUES, GREY, Finding, descend, log_panels

Batch = tuple[Tensor, Tensor]
CELLS = {"tanh RNN": nn.RNN, "LSTM": nn.LSTM}
ROUNDING = 1e-14  # relative gaps below it are float64's, not the model's
THEORY = r"$\gamma\,k\,\lambda^k$, $\gamma$ from $k={}$"


class Model(nn.Module):
    """One recurrent layer with a linear readout.

    Inputs are clamped, so that gated cells have a certificate for all of them.
    """

    def __init__(self, cell: str, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = CELLS[cell](inputs, units, batch_first=True, dtype=torch.float64)
        self.readout = nn.Linear(units, outputs, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, inputs)`` to ``(batch, time, outputs)``."""
        outputs: Tensor = self.readout(self.recurrent(x.clamp(-3.0, 3.0))[0])
        return outputs


def training_batches(data: LinearSystemDataModule) -> list[Batch]:
    """One epoch of training batches in float64, targets of variance 1, so that a step size means the same for all."""
    data.setup("fit")
    scale = data.tensors("train")[1].double().std()
    return [(x.double(), y.double() / scale) for x, y in data.train_dataloader()]


def gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Of the mean squared error with respect to all parameters."""
    x, y = batch
    return torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))


def theory_line(windows: Sequence[int], rate: float, first: float) -> list[float]:
    """``γ k λ^k`` for every window, with the γ that makes it ``first`` at the first window."""
    decay = [window * rate**window for window in windows]
    return [first * (value / decay[0]) for value in decay]  # exactly `first` at the first


def slow_model(cell: str, rate: float, seed: int) -> tuple[Model, float]:
    """A model that remembers for about as long as ``rate`` allows, and its certified rate.

    Trained and randomly initialised models forget much faster than their certificate says, which would make the
    statement easy. So the recurrent matrix of the RNN is a multiple of an orthogonal one and the inputs are weighted
    down, which leaves tanh where its slope is near 1; biases hold the forget gates of the LSTM at their bound.
    """
    torch.manual_seed(seed)
    model = Model(cell, inputs=4, units=16, outputs=2)
    with torch.no_grad():
        model.recurrent.weight_ih_l0.mul_(0.3)
        model.recurrent.bias_ih_l0.zero_()
        model.recurrent.bias_hh_l0.zero_()
        if cell == "LSTM":
            model.recurrent.bias_ih_l0[16:32] = 4.0  # rows i, f, g, o
        else:
            nn.init.orthogonal_(model.recurrent.weight_hh_l0)
    return model, project_(model, rate=rate).rate


def gradient_gaps(model: nn.Module, windows: Sequence[int], batch: Batch) -> list[float]:
    """``||∇ - ∇_k|| / ||∇||`` for every window k: the truncated model has the same weights, not equal ones."""
    full = parameters_to_vector(gradients(model, batch))
    truncated = (gradients(truncate(model, window, share=True), batch) for window in windows)
    return [((parameters_to_vector(gradient) - full).norm() / full.norm()).item() for gradient in truncated]


def gradient_gap(
    seed: int,
    *,
    rates: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    windows: Sequence[int] = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 35, 40),
) -> Finding:
    """The gap between the gradients of a recurrent model and of its truncations, against the window.

    γ depends on smoothness constants that nobody knows for a given model; it is read off at the first window. What
    is put to the test is the decay.
    """
    batch = training_batches(LinearSystemDataModule(rate=0.95, batch_size=16, seed=seed))[0]
    rows: list[dict[str, Any]] = []
    for cell in CELLS:
        for target in rates:
            model, certified = slow_model(cell, target, seed)
            gaps = gradient_gaps(model, windows, batch)
            line = theory_line(windows, certified, gaps[0])
            rows.append({"cell": cell, "target": target, "rate": certified, "gaps": gaps, "theory": line})
    tested = [pair for row in rows for pair in list(zip(row["gaps"], row["theory"], strict=True))[1:]]
    held = all(gap <= max(bound, ROUNDING) for gap, bound in tested)

    table = Table(title="Relative gap between recurrent and truncated gradient")
    shown = [index for index, window in enumerate(windows) if window in (1, 2, 5, 12, 20, 40)]
    for column in ("cell", "certified rate", *(f"k = {windows[index]}" for index in shown)):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for row in rows:
        table.add_row(row["cell"], f"{row['rate']:.3f}", *(f"{row['gaps'][index]:.1e}" for index in shown))

    figure, panels = log_panels("The truncated model's gradient approaches the recurrent one's", 2)
    for axes, cell in zip(panels, CELLS, strict=True):
        for colour, row in zip(reversed(BLUES), (row for row in rows if row["cell"] == cell), strict=False):
            axes.plot(windows, row["gaps"], "o-", color=colour, markersize=4, label=f"λ = {row['rate']:.3g}")
            axes.plot(windows, row["theory"], "--", color=colour, linewidth=1)
        axes.set(ylim=(ROUNDING, 30), xlabel="window k", title=cell)
    panels[0].set_ylabel("gradient gap, relative")
    panels[0].plot([], [], "--", color=GREY, linewidth=1, label=THEORY.format(windows[0]))
    for axes in panels:
        axes.legend(frameon=False, loc="lower left")
    statement = "The gradient gap stays below gamma k λ^k, with gamma from the first window, for every model and window"
    return Finding(f"{statement}.", held, {"windows": list(windows), "models": rows}, table, figure)


def distances(
    data: LinearSystemDataModule, windows: Sequence[int], step_size: Callable[[int], float], *, steps: int, seed: int
) -> tuple[dict[int, list[float]], list[float]]:
    """Train a recurrent model and one twin per window on the same batches, both of the system's rate at most.

    Returns:
        The distance between the weights of the twin and of the model after every step, by window, and the losses of
        the recurrent model.
    """
    torch.manual_seed(seed)
    model = Model("tanh RNN", data.input_size, 16, data.output_size)
    project_(model, rate=data.rate)
    twins = {window: truncate(model, window) for window in windows}
    away: dict[int, list[float]] = {window: [] for window in windows}
    losses = []
    for step, batch in enumerate(islice(cycle(training_batches(data)), steps), 1):
        with torch.no_grad():
            losses.append(nn.functional.mse_loss(model(batch[0]), batch[1]).item())
        for trained in (model, *twins.values()):
            descend(trained, gradients(trained, batch), step_size(step), data.rate)
        here = parameters_to_vector(model.parameters()).detach()
        for window, twin in twins.items():
            away[window].append((parameters_to_vector(twin.parameters()).detach() - here).norm().item())
    return away, losses


def growth(curve: Sequence[float]) -> float:
    """The power of the number of steps with which a curve has grown since its first step."""
    return math.log(curve[-1] / curve[0]) / math.log(len(curve))


def weight_distance(
    seed: int, *, windows: Sequence[int] = (2, 5, 10, 20, 35), rate: float = 0.9, steps: int = 200
) -> Finding:
    """The distance between the weights of a recurrent model and of its twins, against window and steps.

    The constant step size is a tenth of the first falling one; a larger one makes the projected descent oscillate. It
    goes further within these steps and mostly to a smaller loss: what ``α / t`` buys is closeness, not a better model.
    """
    schedules: dict[str, Callable[[int], float]] = {"1 / t": lambda step: 1.0 / step, "0.1": lambda step: 0.1}
    data = LinearSystemDataModule(rate=rate, length=48, batch_size=16, seed=seed)
    runs = {name: distances(data, windows, schedule, steps=steps, seed=seed) for name, schedule in schedules.items()}
    final = {name: [away[window][-1] for window in windows] for name, (away, _) in runs.items()}
    powers = {name: [growth(away[window]) for window in windows] for name, (away, _) in runs.items()}
    line = theory_line(windows, rate, final["1 / t"][0])
    held = all(value <= bound for value, bound in zip(final["1 / t"], line, strict=True)) and all(
        falling < constant for falling, constant in zip(*powers.values(), strict=True)
    )

    table = Table(title=f"Distance between twin and recurrent model after {steps} steps, and its growth with the steps")
    for column in ("window", *(f"step size {name}" for name in runs), *(f"power of t, {name}" for name in runs)):
        table.add_column(column, justify="right")
    for index, window in enumerate(windows):
        entries = [f"{final[name][index]:.1e}" for name in runs] + [f"{powers[name][index]:.2f}" for name in runs]
        table.add_row(str(window), *entries)
    table.caption = "Loss: " + "; ".join(
        f"{losses[0]:.2f} to {losses[-1]:.2f} with {name}" for name, (_, losses) in runs.items()
    )

    figure, panels = log_panels("Trained side by side, twin and recurrent model stay together", 3)
    for (name, values), colour in zip(final.items(), (BLUES[1], GREY), strict=True):
        panels[0].plot(windows, values, "o-", color=colour, label=f"step size {name}")
    panels[0].plot(windows, line, "--", color=BLUES[1], linewidth=1, label=THEORY.format(windows[0]))
    panels[0].set(xlabel="window k", ylabel="distance of the weights", title=f"after {steps} steps, λ = {rate}")
    panels[0].legend(frameon=False, loc="lower left")
    for axes, (name, (away, _)) in zip(panels[1:], runs.items(), strict=True):
        for colour, (window, curve) in zip(BLUES, away.items(), strict=False):
            axes.plot(range(1, steps + 1), curve, color=colour)
            axes.annotate(f"k = {window}", (1, curve[0]), (0, 5), textcoords="offset points", fontsize=9)
        axes.set(xscale="log", xlabel="steps", title=f"step size {name}")
    for axes in panels:
        axes.set_ylim(min(away[windows[-1]][0] for away, _ in runs.values()) / 3, 10)
    statement = (
        "The final distance stays below gamma k λ^k, with gamma from the first window, and grows with a smaller power "
        "of the number of steps when the step size falls."
    )
    numbers = {
        "windows": list(windows),
        "rate": rate,
        "theory": line,
        "runs": {
            name: {"distances": list(away.values()), "growth": powers[name], "loss": losses}
            for name, (away, losses) in runs.items()
        },
    }
    return Finding(statement, held, numbers, table, figure)
