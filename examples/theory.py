"""What the theory of stable recurrent models says about training, measured: three experiments of seconds each.

    python examples/theory.py all --out runs/theory        (or gradient-gap, weight-distance, unstable)

Each prints a table, writes a figure and its numbers as JSON, and says whether the statement held; the exit status is
0 if all of them did. The statements are those of Miller & Hardt, Stable Recurrent Models, on sequences from
:class:`~lightning_stable.datamodules.LinearSystemDataModule`, in float64 throughout:

- ``gradient-gap``: at the same weights, the gradients of a recurrent model of rate λ and of its truncation to a window
  of k inputs differ by at most ``γ k λ^k``, for some constant γ.
- ``weight-distance``: trained side by side by projected gradient descent with step size ``α / t``, the two end close
  together. The distance falls with k like ``k λ^k`` and grows with the number of steps no faster than a power of it,
  for which the falling step size matters: with a constant one the proof allows exponential growth.
- ``unstable``: gradient descent alone does not achieve this. On an unstable linear system its gradients explode.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_stable import linalg, project_, register_recurrence, truncate
from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.datamodules.linear_system import LinearSystem
from lightning_stable.figures import axes, save
from lightning_stable.files import write_text
from lightning_stable.options import HelpFormatter, output_folder, seed
from lightning_stable.printing import print_whole
from lightning_stable.recurrence import Contraction, Recurrence
from lightning_stable.recurrence.base import State, Weights
from lightning_stable.recurrence.intervals import Interval

# From light to dark with the window or the rate.
BLUES = ("#8fbfde", "#5aa3d0", "#3487c2", "#1c63a8", "#08306b")
GREY, RED = "#8c8c8c", "#c0392b"


@dataclass(frozen=True)
class Finding:
    """What an experiment measured.

    Attributes:
        statement: What the theory says.
        held: Whether the numbers agree with it.
        numbers: The numbers, ready for JSON.
        table: The numbers to print.
        figure: The numbers to see.
    """

    statement: str
    held: bool
    numbers: dict[str, Any]
    table: Table
    figure: Figure


def descend(model: nn.Module, descent: Sequence[Tensor], step_size: float, rate: float | None) -> None:
    """Take a step along a gradient, projected onto ``rate`` unless that is None."""
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), descent, strict=True):
            parameter.sub_(step_size * gradient)
    if rate is not None:
        project_(model, rate=rate)


def log_panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, logarithmic in y."""
    return axes((4.2 * count, 4.2), columns=count, title=title, subplot_kw={"yscale": "log"})


# gradient-gap and weight-distance: a recurrent model beside its truncations -------------------------------------------
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
    """Return an epoch of batches in float64, with targets of variance 1: a step size then means the same for all."""
    data.setup("fit")
    scale = data.tensors("train")[1].double().std()
    return [(x.double(), y.double() / scale) for x, y in data.train_dataloader()]


def gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Return the gradients of the mean squared error with respect to all parameters."""
    x, y = batch
    return torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))


def theory_line(windows: Sequence[int], rate: float, first: float) -> list[float]:
    """``γ k λ^k``: return it for every window k, with the γ that makes it ``first`` at the first window."""
    decay = [window * rate**window for window in windows]
    return [first * (value / decay[0]) for value in decay]  # exactly `first` at the first


def slow_model(cell: str, rate: float, seed: int) -> tuple[Model, float]:
    """Return a model that remembers for about as long as ``rate`` allows, and its certified rate.

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
    """``||∇ - ∇_k|| / ||∇||``: return it for every window k; the truncated model shares the weights."""
    full = parameters_to_vector(gradients(model, batch))
    truncated = (gradients(truncate(model, window, share=True), batch) for window in windows)
    return [((parameters_to_vector(gradient) - full).norm() / full.norm()).item() for gradient in truncated]


def gradient_gap(
    seed: int,
    *,
    rates: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    windows: Sequence[int] = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 35, 40),
) -> Finding:
    """Measure the gap between the gradients of a recurrent model and of its truncations, against the window.

    γ depends on smoothness constants that nobody knows for a given model; it is read off at the first window. The
    test is of the decay.
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
    for panel, cell in zip(panels, CELLS, strict=True):
        for colour, row in zip(BLUES, (row for row in rows if row["cell"] == cell), strict=False):
            panel.plot(windows, row["gaps"], "o-", color=colour, markersize=4, label=f"λ = {row['rate']:.3g}")
            panel.plot(windows, row["theory"], "--", color=colour, linewidth=1)
        panel.set(ylim=(ROUNDING, 30), xlabel="window k", title=cell)
    panels[0].set_ylabel("gradient gap, relative")
    panels[0].plot([], [], "--", color=GREY, linewidth=1, label=THEORY.format(windows[0]))
    for panel in panels:
        panel.legend(frameon=False, loc="lower left")
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
    """``log(d_N / d_1) / log N``: return the power of the number of steps N with which a curve d has grown."""
    return math.log(curve[-1] / curve[0]) / math.log(len(curve))


def weight_distance(
    seed: int, *, windows: Sequence[int] = (2, 5, 10, 20, 35), rate: float = 0.9, steps: int = 200
) -> Finding:
    """Measure the distance between the weights of a recurrent model and of its twins, against window and steps.

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
    for (name, values), colour in zip(final.items(), (BLUES[3], GREY), strict=True):
        panels[0].plot(windows, values, "o-", color=colour, label=f"step size {name}")
    panels[0].plot(windows, line, "--", color=BLUES[3], linewidth=1, label=THEORY.format(windows[0]))
    panels[0].set(xlabel="window k", ylabel="distance of the weights", title=f"after {steps} steps, λ = {rate}")
    panels[0].legend(frameon=False, loc="lower left")
    for panel, (name, (away, _)) in zip(panels[1:], runs.items(), strict=True):
        for colour, (window, curve) in zip(BLUES, away.items(), strict=False):
            panel.plot(range(1, steps + 1), curve, color=colour)
            panel.annotate(f"k = {window}", (1, curve[0]), (0, 5), textcoords="offset points", fontsize=9)
        panel.set(xscale="log", xlabel="steps", title=f"step size {name}")
    for panel in panels:
        panel.set_ylim(min(away[windows[-1]][0] for away, _ in runs.values()) / 3, 10)
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


# unstable: gradient descent on stable and unstable linear systems -----------------------------------------------------
class LinearCell(nn.Module):
    """``h' = A h + B x``: the recurrence of the paper's example, read out as the system is."""

    def __init__(self, system: LinearSystem) -> None:
        super().__init__()
        self.system = system
        self.weight_hh, self.weight_ih = (nn.Parameter(weight.clone()) for weight in (system.A, system.B))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, inputs)`` to ``(batch, time, outputs)``."""
        return self.system._replace(A=self.weight_hh, B=self.weight_ih).outputs(x)


@register_recurrence(LinearCell)
class LinearRecurrence(Recurrence):
    """All that the library needs to certify and project the cell; its rate is the norm of ``A``."""

    cell = "linear"
    roles = ("weight_ih", "weight_hh")
    norms = ("l2",)
    needs_drive = False

    def step(self, inputs: Tensor, state: State) -> State:
        """``A h + B x``: return the next state."""
        p = self.parameters()
        return (state[0] @ p["weight_hh"].T + inputs @ p["weight_ih"].T,)

    def initial_state(self, inputs: Tensor) -> State:
        """Return zeros."""
        return (inputs.new_zeros(*inputs.shape[:-1], len(self.parameters()["weight_hh"])),)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """``||A||_2``: return the rate, which holds in the Euclidean norm."""
        hidden = weights["weight_hh"]
        return Contraction(linalg.spectral_norm(hidden), (torch.ones_like(hidden[0]),), order=2)


def identify(
    rate: float,
    step_size: float,
    *,
    start: float = 1.05,
    length: int = 100,
    steps: int = 60,
    seed: int = 0,
    project: float | None = None,
) -> Iterator[tuple[float, float]]:
    """Learn ``A`` and ``B`` of a scalar system by plain gradient descent on all its sequences; C and D are given.

    Two choices rule the easy explanations out. Losses are relative (1 is the error of a model without memory), so the
    mere size of its outputs puts no system at a disadvantage. And the descent starts near the truth, so none has far
    to go. What fails then fails because of the dynamics.

    Args:
        rate: |A| of the system.
        step_size: The step size, the same for all steps.
        start: The first weights, as a multiple of the true ``A`` and ``B``.
        length: The number of time steps of a sequence.
        steps: The largest number of steps; the descent ends when the gradient is no longer finite.
        seed: The seed of the system and its sequences.
        project: The rate onto which every step is projected; None does not project.

    Yields:
        The loss and the norm of its gradient before each step.
    """
    data = LinearSystemDataModule(
        rate=rate, state_size=1, input_size=1, output_size=1, length=length, train_size=128, noise=0.0, seed=seed
    )
    data.setup()
    x, y = (value.double() for value in data.tensors("train"))
    system = data.system
    memory = y - x @ system.D.T
    cell = LinearCell(system._replace(A=start * system.A, B=start * system.B))
    if project is not None:
        project_(cell, rate=project)
    for _ in range(steps):
        loss = (cell(x) - y).square().mean() / memory.square().mean()
        descent = torch.autograd.grad(loss, list(cell.parameters()))
        norm = parameters_to_vector(descent).norm().item()
        yield loss.item(), norm
        if not math.isfinite(norm):
            return
        descend(cell, descent, step_size, project)


def largest_step_size(rate: float, seed: int) -> float:
    """Return the largest power of √10, from 1 down, with which descent lowers the loss to a tenth; 0 if none."""
    for exponent in range(40):
        losses = [loss for loss, _ in identify(rate, 10 ** (-exponent / 2), seed=seed)]
        if losses[-1] <= losses[0] / 10:
            return float(10 ** (-exponent / 2))
    return 0.0


def unstable(
    seed: int,
    *,
    step_size: float = 0.01,
    lengths: Sequence[int] = (10, 20, 40, 60, 80, 100, 150, 200),
    rates: Sequence[float] = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1),
) -> Finding:
    """Run gradient descent on a stable and an unstable linear system, after the paper's scalar example.

    The two systems differ in their rate only: 0.9 and 1.05. Descent starts 5 % above the truth; from 5 % below, where
    its gradients are small at first, it overflows on the unstable system as well. See :func:`identify`.
    """
    descent = partial(identify, step_size=step_size, seed=seed)
    runs = {
        "stable, 0.9": list(descent(0.9)),
        "unstable, 1.05": list(descent(1.05)),
        "unstable, projected": list(descent(1.05, project=0.99)),
    }
    slopes = {rate: [next(descent(rate, length=length))[1] for length in lengths] for rate in (0.9, 1.0, 1.05)}
    workable = {rate: largest_step_size(rate, seed) for rate in rates}
    stable, free, projected = runs.values()
    held = (
        stable[-1][0] < 1e-2 * stable[0][0]
        and not math.isfinite(free[-1][1])
        and len(projected) == len(stable)
        and all(math.isfinite(norm) for _, norm in projected)
        and workable[1.05] < 1e-2 * workable[0.9]
    )

    table = Table(title=f"Gradient descent with step size {step_size} from 5 % off the truth")
    for column in ("system", "steps", "first loss", "last loss", "first gradient", "largest finite gradient"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, run in runs.items():
        values = (run[0][0], run[-1][0], run[0][1], max(norm for _, norm in run if math.isfinite(norm)))
        table.add_row(name, str(len(run)), *(f"{value:.1e}" for value in values))
    table.caption = "Largest step size that works: " + ", ".join(
        f"{workable[rate]:.0e} at rate {rate}" for rate in (0.9, 1.0, 1.05) if rate in workable
    )

    figure, panels = log_panels("Gradient descent needs a stable system", 3)
    colours = dict(zip(runs, (BLUES[3], RED, GREY), strict=True))
    for name, run in runs.items():
        losses = [min(loss, 1e99) for loss, _ in run]  # what has overflown leaves the panel too
        panels[0].plot(range(len(losses)), losses, color=colours[name], linewidth=2, label=name)
    panels[0].set(ylim=(1e-8, 1e8), xlabel="steps", ylabel="relative loss", title=f"step size {step_size}")
    if not math.isfinite(free[-1][1]):
        note = f"overflows at\nstep {len(free) - 1}"
        panels[0].annotate(note, (1, 1e5), (8, 0), textcoords="offset points", color=RED, fontsize=9)
    panels[0].legend(frameon=False)
    for (rate, norms), colour in zip(slopes.items(), (BLUES[3], GREY, RED), strict=True):
        panels[1].plot(lengths, norms, "o-", color=colour, markersize=4, label=f"rate {rate}")
    panels[1].set(xlabel="time steps of a sequence", ylabel="norm of the gradient", title="gradient at the start")
    panels[1].legend(frameon=False)
    panels[2].plot(list(workable), list(workable.values()), "o-", color=BLUES[3], markersize=4)
    panels[2].axvline(1.0, color=GREY, linestyle=":", linewidth=1)
    panels[2].set(xlabel="rate of the system", ylabel="step size", title="largest step size that works")
    statement = (
        "With the same step size descent converges on the stable system and overflows on the unstable one; projected "
        "onto the stable set it stays finite."
    )
    finite = {name: [[v if math.isfinite(v) else None for v in point] for point in run] for name, run in runs.items()}
    numbers = {
        "step_size": step_size,
        "runs": finite,  # JSON knows no infinity
        "lengths": list(lengths),
        "gradient_norms": slopes,
        "largest_step_size": workable,
    }
    return Finding(statement, held, numbers, table, figure)


EXPERIMENTS: dict[str, Callable[[int], Finding]] = {
    "gradient-gap": gradient_gap,
    "weight-distance": weight_distance,
    "unstable": unstable,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments asked for; return 0 if every statement held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"], help="what to measure")
    parser.add_argument("--out", type=output_folder, default=Path("runs/theory"), help="folder for figures and numbers")
    parser.add_argument("--seed", type=seed, default=0, help="seed of weights and data")
    options = parser.parse_args(arguments)
    console, all_held = Console(), True
    for name, experiment in EXPERIMENTS.items():
        if options.experiment not in (name, "all"):
            continue
        finding = experiment(options.seed)
        all_held &= finding.held
        path = options.out / name
        save(finding.figure, path.with_suffix(".png"))
        summary = {"statement": finding.statement, "held": finding.held, "seed": options.seed}
        write_text(path.with_suffix(".json"), json.dumps(summary | finding.numbers, indent=1))
        print_whole(console, finding.table)
        console.print(
            f"{'Held' if finding.held else 'DID NOT HOLD'}: {finding.statement}\n{path}.png, {path}.json\n",
            soft_wrap=True,
        )
    return 0 if all_held else 1


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    raise SystemExit(main())
