"""Gradient descent on stable and unstable linear systems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_stable import linalg, project_, register_recurrence
from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.datamodules.linear_system import LinearSystem
from lightning_stable.recurrence import Contraction, Recurrence
from lightning_stable.recurrence.base import State, Weights
from lightning_stable.recurrence.intervals import Interval
from theory_experiments import BLUES, GREY, RED, Finding, descend, log_panels


class LinearCell(nn.Module):
    """``h' = A h + B x``, the recurrence of the paper's example; its outputs are read as the system's are."""

    def __init__(self, system: LinearSystem) -> None:
        super().__init__()
        self.system = system
        self.weight_hh, self.weight_ih = (nn.Parameter(weight.clone()) for weight in (system.A, system.B))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, inputs)`` to ``(batch, time, outputs)``."""
        return self.system._replace(A=self.weight_hh, B=self.weight_ih).outputs(x)


@register_recurrence(LinearCell)
class LinearRecurrence(Recurrence):
    """With this much the library certifies and projects the cell; its rate is the norm of ``A``."""

    cell = "linear"
    roles = ("weight_ih", "weight_hh")
    norms = ("l2",)
    needs_drive = False

    def step(self, inputs: Tensor, state: State) -> State:
        """``(h,) -> (A h + B x,)``."""
        p = self.parameters()
        return (state[0] @ p["weight_hh"].T + inputs @ p["weight_ih"].T,)

    def initial_state(self, inputs: Tensor) -> State:
        """Zeros."""
        return (inputs.new_zeros(*inputs.shape[:-1], len(self.parameters()["weight_hh"])),)

    def contraction(
        self, weights: Weights, drive: Interval | None, *, norm: str | None = None, state_bound: float = 1.0
    ) -> Contraction:
        """The spectral norm of ``A``."""
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

    Two choices take the easy explanations away. Losses are relative (1 is the error of a model without memory), so
    no system is at a disadvantage for the mere size of its outputs. And the descent starts near the truth, so none
    has far to go. What fails then fails because of the dynamics.

    Args:
        rate: |A| of the system.
        step_size: Constant.
        start: Times the true ``A`` and ``B``.
        length: Time steps.
        steps: Largest number of steps; the descent ends when loss or gradient are no longer finite.
        seed: Of the system and its sequences.
        project: Project onto this rate at the start and after every step; None does not project.

    Yields:
        Loss and norm of its gradient before each step.
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
    """The largest power of √10, from 1 down, with which descent lowers the loss to a tenth; 0 if none."""
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
    """Gradient descent on a stable and an unstable linear system, after the paper's scalar example.

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
    colours = dict(zip(runs, (BLUES[1], RED, GREY), strict=True))
    for name, run in runs.items():
        losses = [min(loss, 1e99) for loss, _ in run]  # what has overflown leaves the panel too
        panels[0].plot(range(len(losses)), losses, color=colours[name], linewidth=2, label=name)
    panels[0].set(ylim=(1e-8, 1e8), xlabel="steps", ylabel="relative loss", title=f"step size {step_size}")
    if not math.isfinite(free[-1][1]):
        note = f"overflows at\nstep {len(free) - 1}"
        panels[0].annotate(note, (1, 1e5), (8, 0), textcoords="offset points", color=RED, fontsize=9)
    panels[0].legend(frameon=False)
    for (rate, norms), colour in zip(slopes.items(), (BLUES[1], GREY, RED), strict=True):
        panels[1].plot(lengths, norms, "o-", color=colour, markersize=4, label=f"rate {rate}")
    panels[1].set(xlabel="time steps of a sequence", ylabel="norm of the gradient", title="gradient at the start")
    panels[1].legend(frameon=False)
    panels[2].plot(list(workable), list(workable.values()), "o-", color=BLUES[1], markersize=4)
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
