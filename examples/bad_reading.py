"""One bad reading: how long does a forecaster's answer depend on it, and who promises that?

    python examples/bad_reading.py --out runs/bad-reading        (about a minute)

A sensor reads a level that drifts, in noise, once an hour. A GRU forecasts the next reading. It is trained twice:
unconstrained, and with a StabilityProjectionCallback. Then one reading of 128 new series is replaced by a wrong one.
Everything after it is right again, and each model is compared with itself on the series without the wrong reading.

No reading, however wrong, drives the state of a GRU out of [-1, 1]: a new state is a mean of the old one and a tanh.
So the state after a bad reading is one from which the certificate holds, although the reading itself is not in the set
of inputs that it is for. With k right readings in common, both runs are within the bound for a window of k readings of
a run from zero, and within twice the bound of each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable import certify, certify_windows
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.figures import BOUND_COLOURS, MODEL_COLOURS, axes, save
from lightning_stable.models import SequenceRegressor
from lightning_stable.options import HelpFormatter, between, output_folder, positive, seed
from lightning_stable.printing import counted
from lightning_stable.quiet import quiet
from lightning_stable.stability import StabilityReport
from lightning_stable.stability.report import why_no_bound

RANGE = 6.0  # of the sensor: a right reading is never beyond it
DRIFT = 0.99  # what is left of the level after an hour
BEFORE, AFTER = 100, 200  # hours before and after the bad reading
WRONG = (-50.0, -RANGE, RANGE, 50.0)  # two of them look right
TOLERANCE = 0.1  # of a forecast; the standard deviation of the level is 1
KINDS = ("unconstrained", "stable")


class Recovery(NamedTuple):
    """A model after bad readings.

    Attributes:
        report: Its certificates.
        state: The largest distance to its own state without the bad reading, over series and readings, ``(hours,)``.
        forecast: The same of the forecasts.
        extra: By which share it raises the error of the forecasts, the root of the mean square, ``(hours,)``.
        usual: That error without a bad reading, over all hours.
        worst_case: A bound on ``state`` from the first hour on for every right reading; infinite if none is certified.
        tube: The same for the readings at hand; None if nothing is certified.
        gain: A forecast changes by at most ``gain`` times the change of the state.
    """

    report: StabilityReport
    state: Tensor
    forecast: Tensor
    extra: Tensor
    usual: float
    worst_case: Tensor
    tube: Tensor | None
    gain: float

    def tube_time(self) -> int | None:
        """Return the hours after which every forecast is certified to be right again, for the readings at hand."""
        later = None if self.tube is None else first_within(self.gain * self.tube, TOLERANCE)
        return None if later is None else later + 1

    def certified_time(self) -> int | None:
        """Return the hours after which every forecast is certified to be right again, whatever the readings are."""
        return self.report.required_window(TOLERANCE / (2 * self.gain))


def readings(series: int, hours: int, generator: torch.Generator) -> Tensor:
    """Return a level of variance 1 in noise of variance 1, within the range of the sensor, ``(series, hours, 1)``."""

    def noise(*shape: int) -> Tensor:
        return 3**0.5 * (2 * torch.rand(*shape, generator=generator) - 1)

    levels = [noise(series)]
    for _ in range(hours - 1):
        levels.append(DRIFT * levels[-1] + (1 - DRIFT**2) ** 0.5 * noise(series))
    return (torch.stack(levels, 1) + noise(series, hours)).clamp(-RANGE, RANGE)[..., None]


def train(stable: bool, options: argparse.Namespace) -> SequenceRegressor:
    """Train a forecaster of the next reading."""
    seed_everything(options.seed, verbose=False)
    model = SequenceRegressor(1, 1, cell="gru", hidden_size=options.hidden_size, learning_rate=3e-3)
    series = readings(256, 201, torch.Generator().manual_seed(options.seed))
    batches = DataLoader(TensorDataset(series[:, :-1], series[:, 1:]), batch_size=16, shuffle=True)
    callbacks: list[Callback] = [StabilityProjectionCallback(options.rate, input_bound=RANGE)] if stable else []
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
    trainer.fit(model, batches)
    return model.eval()


@torch.no_grad()
def recover(model: SequenceRegressor, series: Tensor) -> Recovery:
    """Compare the model after bad readings with itself without them."""
    inputs, targets = series[:, :-1], series[:, BEFORE + 1 :]
    core, head = model.core, model.head
    assert isinstance(core, nn.GRU)
    right = core(inputs)[0][:, BEFORE:]
    states = []
    for wrong in WRONG:
        broken = inputs.clone()
        broken[:, BEFORE] = wrong
        states.append(core(broken)[0][:, BEFORE:])
    changed = torch.stack(states)  # (readings, series, hours, units)
    report = certify(core, input_bound=RANGE)

    def error(forecasts: Tensor) -> Tensor:
        return (forecasts - targets).square().mean((0, 1, 3)).sqrt()

    tube = None
    if report.is_stable:
        later = inputs[:, BEFORE + 1 :]
        windows = (later[:, :hours] for hours in range(1, later.shape[1] + 1))
        tube = torch.stack([2 * certify_windows(core, window, input_bound=RANGE).max() for window in windows])
    return Recovery(
        report=report,
        state=(changed - right).norm(dim=-1).amax((0, 1)),
        forecast=(head(changed) - head(right)).abs().amax((0, 1, 3)),
        extra=error(head(changed)) / error(head(right)[None]) - 1,
        usual=error(head(right)[None]).square().mean().sqrt().item(),
        worst_case=2 * report.bounds[0].errors(AFTER),
        tube=tube,
        gain=head.weight.norm().item(),
    )


def first_within(values: Tensor, limit: float) -> int | None:
    """Return the first place from which on values stay within a limit; None if the last one is not."""
    outside = (values > limit).nonzero()
    first = int(outside[-1]) + 1 if len(outside) else 0
    return first if first < len(values) else None


def draw(found: dict[str, Recovery]) -> Figure:
    """Draw states and errors by the time since the bad reading."""
    figure, (left, right) = axes((11, 4.2), columns=2)
    for name, model in found.items():
        hours = range(len(model.state))
        left.plot(hours, model.state, color=MODEL_COLOURS[name], linewidth=2, label=f"{name}, measured")
        right.plot(hours, 100 * model.extra, color=MODEL_COLOURS[name], linewidth=2)
    stable = found["stable"]
    if stable.tube is not None:
        hours = range(1, len(stable.tube) + 1)
        left.plot(
            hours,
            stable.tube,
            color=BOUND_COLOURS["tube"],
            linestyle="-.",
            label="stable, certified for these readings",
        )
        label = "stable, certified for all readings"
        left.plot(hours, stable.worst_case[: len(hours)], color=BOUND_COLOURS["certified"], linestyle="--", label=label)
    left.set(yscale="log", ylim=(1e-3, 30), xlim=(0, 200))
    left.set(xlabel="hours since the bad reading", ylabel="distance of the states (Euclidean)")
    left.set_title("How far the state is from where it would be", fontsize=11)
    left.legend(frameon=False, fontsize=9, loc="upper right")
    lines = (
        (stable.tube_time(), BOUND_COLOURS["tube"], "-.", "these readings", 0.8),
        (stable.certified_time(), BOUND_COLOURS["certified"], "--", "all readings", 0.5),
    )
    for time, colour, style, whom, height in lines:
        if time is not None:
            right.axvline(time, color=colour, linestyle=style)
            text = f"certified for {whom}:\nback within {TOLERANCE:g} after {time} h"
            side = "left" if time < 100 else "right"
            place = (time + (3 if side == "left" else -3), height)
            right.annotate(text, place, xycoords=right.get_xaxis_transform(), ha=side, color=colour)
    right.set(xlim=(0, 200), xlabel="hours since the bad reading", ylabel="additional error of the forecasts (%)")
    right.set_title("What it does to the forecasts", fontsize=11)
    return figure


def describe(name: str, model: Recovery) -> str:
    """Say in two sentences what was found."""
    measured = first_within(model.forecast, TOLERANCE)
    took = f"more than {AFTER} hours" if measured is None else counted(measured, "hour")
    text = (
        f"The {name} model errs by {model.usual:.3f} without a bad reading. After one, it takes {took} until all "
        f"forecasts are within {TOLERANCE:g} of what they would have been (measured)."
    )
    if model.tube is None:
        return f"{text} {why_no_bound(model.report)}"
    tube, certified = (
        "no time" if time is None else counted(time, "hour") for time in (model.tube_time(), model.certified_time())
    )
    return (
        f"{text} Certified, whatever the bad reading was: {tube} for the readings that followed, {certified} for all "
        f"that can follow (rate {model.report.rate:.4f})."
    )


@quiet()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models, print what was found and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/bad-reading"), help="folder for the figure")
    parser.add_argument("--epochs", type=positive, default=15, help="epochs per model")
    parser.add_argument("--hidden-size", type=positive, default=32, help="units of the GRU")
    parser.add_argument("--rate", type=between("(0, 1)"), default=0.98, help="largest certified rate per hour")
    parser.add_argument("--seed", type=seed, default=1, help="seed of weights, batches and series")
    options = parser.parse_args(arguments)
    series = readings(128, BEFORE + AFTER + 1, torch.Generator().manual_seed(options.seed + 1))
    found = {name: recover(train(name == "stable", options), series) for name in KINDS}
    for name, model in found.items():
        print(describe(name, model))
    print(save(draw(found), options.out / "bad-reading.png"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    main()
