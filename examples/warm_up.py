"""Warm-up: how many past days must a forecaster see before its answer can be trusted?

    python examples/warm_up.py --out runs/warm-up        (about 70 seconds)

An LSTM computes the discharge of a catchment from rain and evaporation, as in rainfall-runoff modelling, where 365 days
of warm-up are the custom. The catchments are generated: rain fills a soil, which feeds a fast store (3 days) and a slow
one (60 days). The LSTM is trained twice, unconstrained and with a StabilityProjectionCallback, and both are asked how
long a warm-up changes their discharge by no more than 0.1 mm a day: measured on 60 new catchments, statistically for 95
% of all catchments of this kind, certified for the weather at hand, and certified for every weather.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable import certify, truncation_profile
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.figures import BOUND_COLOURS, MODEL_COLOURS, axes, log_axis, save
from lightning_stable.models import SequenceRegressor
from lightning_stable.options import HelpFormatter, between, output_folder, positive, seed
from lightning_stable.printing import counted
from lightning_stable.quiet import quiet

MOST_RAIN, MOST_EVAPORATION = 40.0, 3.5  # mm a day; inputs are shares of them
FAST, SLOW = 3.0, 60.0  # days
SPIN_UP = 730  # days for which a generated catchment has run before its first day
CUSTOM = 365  # days of warm-up that are usual
TOLERANCE = 0.1  # mm a day
COVERAGE = CONFIDENCE = 0.95
KINDS = ("unconstrained", "stable")


class Catchments(NamedTuple):
    """Generated weather and what it leads to.

    Attributes:
        weather: Rain and evaporation as shares of the most there can be, ``(catchments, days, 2)``.
        discharge: In mm a day, ``(catchments, days, 1)``.
    """

    weather: Tensor
    discharge: Tensor


class Windows(NamedTuple):
    """Days of warm-up after which the discharge is within the tolerance; None if none was found.

    Attributes:
        measured: On the catchments at hand.
        statistical: For a share ``COVERAGE`` of all, with confidence ``CONFIDENCE``.
        tube: Certified for the weather at hand, whatever came before.
        certified: Certified for every weather.
    """

    measured: int | None
    statistical: int | None
    tube: int | None
    certified: int | None


class Found(NamedTuple):
    """What is known about one model.

    Attributes:
        rate: The certified rate.
        windows: The warm-ups it needs.
        lengths: Lengths of warm-up, in days.
        errors: The error of the discharge after each of them, the root of the mean square in mm a day.
    """

    rate: float
    windows: Windows
    lengths: list[int]
    errors: list[float]


def catchments(count: int, days: int, generator: torch.Generator) -> Catchments:
    """Generate catchments with weather of their own."""
    total = days + SPIN_UP
    phase = torch.rand(count, 1, generator=generator)
    winter = torch.cos(2 * torch.pi * (torch.arange(total) / 365 + phase))
    wet = torch.rand(count, total, generator=generator) < 0.3 + 0.15 * winter
    rain = (wet * -8 * torch.rand(count, total, generator=generator).clamp(min=1e-9).log()).clamp(max=MOST_RAIN)
    evaporation = (MOST_EVAPORATION + 0.5) / 2 - (MOST_EVAPORATION - 0.5) / 2 * winter
    soil, fast, slow = torch.full((count,), 50.0), torch.zeros(count), torch.full((count,), 50.0)
    discharge = []
    for falls, evaporates in zip(rain.unbind(1), evaporation.unbind(1), strict=True):
        wetness = (soil / 150).clamp(max=1)
        runs_off, seeps = falls * wetness.square(), 0.03 * soil
        soil = (soil + falls - runs_off - seeps - evaporates * wetness).clamp(min=0)
        fast, slow = fast + runs_off, slow + seeps
        discharge.append(fast / FAST + slow / SLOW)
        fast, slow = fast - fast / FAST, slow - slow / SLOW
    weather = torch.stack((rain / MOST_RAIN, evaporation / MOST_EVAPORATION), -1)
    return Catchments(weather[:, SPIN_UP:], torch.stack(discharge, 1)[:, SPIN_UP:, None])


def train(stable: bool, options: argparse.Namespace) -> SequenceRegressor:
    """Train an LSTM on the discharge of generated catchments, in mm a day."""
    seed_everything(options.seed, verbose=False)
    known = catchments(96, 730, torch.Generator().manual_seed(options.seed))
    model = SequenceRegressor(2, 1, cell="lstm", hidden_size=options.hidden_size, learning_rate=5e-3)
    torch.nn.init.constant_(model.head.bias, known.discharge.mean().item())
    callbacks: list[Callback] = [StabilityProjectionCallback(options.rate, input_bound=1.0)] if stable else []
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=callbacks,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(model, DataLoader(TensorDataset(*known), batch_size=16, shuffle=True))
    return model.eval()


@torch.no_grad()
def errors_after(model: SequenceRegressor, new: Catchments, lengths: Sequence[int]) -> list[float]:
    """Return the error of the discharge after warm-ups from zero, on the same days for all lengths."""
    last = range(max(lengths) - 1, new.weather.shape[1], 10)
    targets = new.discharge[:, last.start :: last.step, 0]
    errors = []
    for length in lengths:
        windows = torch.stack([new.weather[:, day - length + 1 : day + 1] for day in last], 1)
        answers = model(windows.flatten(0, 1))[:, -1, 0].view_as(targets)
        errors.append((answers - targets).square().mean().sqrt().item())
    return errors


def examine(model: SequenceRegressor, new: Catchments, longest: int = CUSTOM) -> Found:
    """Measure and certify how long a warm-up the model needs."""
    core = model.core
    profile = truncation_profile(core, new.weather, longest, input_bound=1.0)
    report = certify(core, input_bound=1.0)
    # The discharge changes by at most the norm of the readout's weights times the change of the LSTM's output.
    tolerance = TOLERANCE / model.head.weight.norm().item()
    windows = Windows(
        measured=profile.required_window(tolerance),
        statistical=profile.required_window(tolerance, coverage=COVERAGE, confidence=CONFIDENCE),
        tube=profile.tube_window(tolerance),
        certified=report.required_window(tolerance),
    )
    lengths = [length for length in (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 180, 250) if length < longest]
    lengths.append(longest)
    return Found(report.rate, windows, lengths, errors_after(model, new, lengths))


def draw(found: dict[str, Found]) -> Figure:
    """Draw the error by the length of the warm-up, with the windows as lines."""
    figure, panels = axes((11, 4.2), columns=2, sharey=True)
    for panel, (name, model) in zip(panels, found.items(), strict=True):
        panel.plot(model.lengths, model.errors, "o-", color=MODEL_COLOURS[name], linewidth=2, markersize=4)
        log_axis(panel, "x", subs=(1, 3))
        panel.set(xlim=(0.9, 1000), ylim=(0, 1.12 * max(max(other.errors) for other in found.values())))
        certified = f"certified rate {model.rate:.3g}" if model.rate < 1 else "nothing certified"
        panel.set(xlabel="warm-up (days)", title=f"{name}, {certified}")
        known = model.windows
        measured = (
            f"measured, and for {100 * COVERAGE:g} % of all" if known.measured == known.statistical else "measured"
        )
        lines = (
            (known.measured, BOUND_COLOURS["measured"], "-", measured),
            (known.tube, BOUND_COLOURS["tube"], "-.", "certified for this weather"),
            (known.certified, BOUND_COLOURS["certified"], "--", "certified for every weather"),
        )
        panel.axvline(CUSTOM, color="black", linestyle=":")
        upright: dict[str, Any] = {"transform": panel.get_xaxis_transform(), "rotation": 90, "fontsize": 9}
        panel.text(1.05 * CUSTOM, 0.03, f"the custom: {CUSTOM}", ha="left", va="bottom", **upright)
        for days, colour, style, label in lines:
            if days is not None:
                panel.axvline(days, color=colour, linestyle=style)
                panel.text(0.96 * days, 0.97, f"{label}: {days}", ha="right", va="top", color=colour, **upright)
    panels[0].set_ylabel("error of the discharge (mm/day, root mean square)")
    return figure


def describe(name: str, model: Found) -> str:
    """Say what was found."""
    longest, known = model.lengths[-1], model.windows
    measured, statistical = (
        f"more than {longest} days" if window is None else counted(window, "day")
        for window in (known.measured, known.statistical)
    )
    tube, certified = (
        "no length" if window is None else counted(window, "day") for window in (known.tube, known.certified)
    )
    return (
        f"The {name} model errs by {model.errors[-1]:.2f} mm a day after {longest} days of warm-up. The warm-up after "
        f"which no other past changes its answer by more than {TOLERANCE:g} mm a day: measured, {measured}; for "
        f"{100 * COVERAGE:g} % of all catchments, with confidence {100 * CONFIDENCE:g} %, {statistical}; certified for "
        f"this weather, {tube}; certified for every weather, {certified} (rate {model.rate:.3g})."
    )


@quiet()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models, print what was found and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/warm-up"), help="folder for the figure")
    parser.add_argument("--epochs", type=positive, default=60, help="epochs per model")
    parser.add_argument("--hidden-size", type=positive, default=16, help="units of the LSTM")
    parser.add_argument("--rate", type=between("(0, 1)"), default=0.99, help="largest certified rate per day")
    parser.add_argument("--days", type=positive, default=600, help="days of a new catchment, at least 366")
    parser.add_argument("--seed", type=seed, default=1, help="seed of weights, batches and catchments")
    options = parser.parse_args(arguments)
    if options.days <= CUSTOM:
        parser.error(f"argument --days: must be at least {CUSTOM + 1}. Got {options.days}")
    new = catchments(60, options.days, torch.Generator().manual_seed(options.seed + 1))
    found = {name: examine(train(name == "stable", options), new) for name in KINDS}
    for name, model in found.items():
        print(describe(name, model))
    print(save(draw(found), options.out / "warm-up.png"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    main()
