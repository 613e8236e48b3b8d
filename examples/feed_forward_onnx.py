"""Off the recurrence: a trained LSTM as a feed-forward ONNX program, with a bound beside every answer.

    pip install 'lightning-stable[export]'
    python examples/feed_forward_onnx.py --out runs/feed-forward-onnx        (about a minute)

A stable LSTM learns to forecast a swinging series and is written to two files, for whole batches and for streams. They
are then run by `batched` and `streamed`, which need NumPy and onnxruntime alone: no state of the network to keep, only
the last inputs. The answers of a stream that begins now are compared with those of the recurrent LSTM that has run for
500 steps, of which the program knows nothing: the bound beside each answer says how much that can matter.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.export import export
from lightning_stable.figures import BOUND_COLOURS, MODEL_COLOURS, axes, save
from lightning_stable.models import SequenceRegressor
from lightning_stable.options import HelpFormatter, between, output_folder, positive, seed
from lightning_stable.quiet import quiet

RANGE = 4.0  # of the series
PAST = 500  # steps that the recurrent LSTM has seen and the program has not
SHOWN = 60


# What a user of the two files writes ----------------------------------------------------------------------------------
def session(file: Path) -> Any:
    """Load a program."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def batched(file: Path, series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answer whole sequences at once, ``(batch, time, features)``; return answers and bounds, ``(batch, time)``."""
    answers, bounds = session(file).run(None, {"input": series})
    return answers, bounds


def streamed(file: Path, series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answer step by step, as readings come; return the same as :func:`batched`."""
    program = session(file)
    shapes = {given.name: given.shape for given in program.get_inputs()}
    count, recent = np.zeros(len(series), np.int64), np.zeros((len(series), *shapes["recent"][1:]), np.float32)
    found = []
    for reading in series.swapaxes(0, 1):
        answer, count, recent, bound = program.run(None, {"input": reading, "count": count, "recent": recent})
        found.append((answer, bound))
    answers, bounds = zip(*found, strict=True)
    return np.stack(answers, 1), np.stack(bounds, 1)


# Everything before and after ------------------------------------------------------------------------------------------
class Found(NamedTuple):
    """What the programs answered.

    Attributes:
        recurrent: The forecasts of the recurrent LSTM with its past, ``(series, steps)``.
        program: Those of the streaming program, which begins now, the same shape.
        bound: By how much a forecast can differ from that with any past, the same shape.
        apart: The largest difference between the streaming program and the other one.
    """

    recurrent: np.ndarray
    program: np.ndarray
    bound: np.ndarray
    apart: float


def swings(series: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return series that swing with a period of about 25 steps, driven by noise, ``(series, steps, 1)``."""
    before, last, found = torch.zeros(series), torch.zeros(series), []
    for _ in range(steps + 100):
        drive = 2 * torch.rand(series, generator=generator) - 1
        before, last = last, (1.84 * last - 0.9 * before + 0.3 * drive).clamp(-RANGE, RANGE)
        found.append(last)
    return torch.stack(found[100:], 1)[..., None]


def train(options: argparse.Namespace) -> SequenceRegressor:
    """Train a stable forecaster of the next value."""
    seed_everything(options.seed, verbose=False)
    series = swings(256, 101, torch.Generator().manual_seed(options.seed))
    model = SequenceRegressor(1, 1, cell="lstm", hidden_size=options.hidden_size, learning_rate=5e-3)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[StabilityProjectionCallback(options.rate, input_bound=RANGE)],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(model, DataLoader(TensorDataset(series[:, :-1], series[:, 1:]), batch_size=32, shuffle=True))
    return model.eval()


@torch.no_grad()
def compare(model: SequenceRegressor, whole: Path, stream: Path, series: Tensor) -> Found:
    """Run both programs from ``PAST`` on, and the recurrent LSTM from the beginning."""
    new = series[:, PAST:].numpy()
    answers, bounds = streamed(stream, new)
    same, _ = batched(whole, new)
    return Found(
        recurrent=model(series)[:, PAST:, 0].numpy(),
        program=answers[..., 0],
        bound=bounds * model.head.weight.norm().item(),  # of the LSTM's output; the readout turns it into a forecast
        apart=float(np.abs(answers - same).max()),
    )


def draw(found: Found, window: int) -> Figure:
    """Draw the first steps of one stream, and bounds and differences of all of them."""
    figure, (left, right) = axes((11, 4.2), columns=2)
    steps = np.arange(1, found.bound.shape[1] + 1)
    low, high = found.program[0] - found.bound[0], found.program[0] + found.bound[0]
    left.fill_between(steps[:SHOWN], low[:SHOWN], high[:SHOWN], color=BOUND_COLOURS["tube"], alpha=0.3, linewidth=0)
    left.plot(steps[:SHOWN], found.program[0, :SHOWN], color="black", linewidth=1, label="program, with its bound")
    label = f"recurrent LSTM, {PAST} steps of past"
    left.plot(
        steps[:SHOWN],
        found.recurrent[0, :SHOWN],
        color=MODEL_COLOURS["stable"],
        linestyle=":",
        linewidth=2.5,
        label=label,
    )
    left.set(ylim=(-RANGE, RANGE), xlabel="steps since the stream began", ylabel="forecast of the next value")
    left.set_title("One stream", fontsize=11)
    left.legend(frameon=False, fontsize=9, loc="upper right")
    difference = np.abs(found.program - found.recurrent).max(0)
    curves = (
        (found.bound.max(0), BOUND_COLOURS["tube"], "-.", "largest bound beside an answer"),
        (difference, MODEL_COLOURS["stable"], "-", "largest difference from the LSTM"),
    )
    for values, colour, style, label in curves:
        right.plot(steps, values, color=colour, linestyle=style)
        after = values[window - 1 : 2 * window].max()
        right.annotate(label, (1.05 * window, after), (0, 6), textcoords="offset points", color=colour)
    right.axvline(window, color="black", linestyle=":", linewidth=1)
    right.text(window, 0.93, f" window: {window}", transform=right.get_xaxis_transform())
    right.set(
        yscale="log", xlim=(0, 2.5 * window), xlabel="steps since the stream began", ylabel="difference of forecasts"
    )
    right.set_title(f"{len(found.bound)} streams", fontsize=11)
    return figure


@quiet()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, run, print what was found and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--out", type=output_folder, default=Path("runs/feed-forward-onnx"), help="folder for the files"
    )
    parser.add_argument("--epochs", type=positive, default=15, help="epochs of training")
    parser.add_argument("--hidden-size", type=positive, default=16, help="units of the LSTM")
    parser.add_argument("--rate", type=between("(0, 1)"), default=0.8, help="largest certified rate per step")
    parser.add_argument("--window", type=positive, default=12, help="inputs that the programs see")
    parser.add_argument("--seed", type=seed, default=1, help="seed of weights, batches and series")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("onnxruntime") is None:
        parser.error("This example needs the extra `export`: pip install 'lightning-stable[export]'")
    model = train(options)
    series = swings(32, PAST + max(SHOWN, 3 * options.window), torch.Generator().manual_seed(options.seed + 1))
    report = certify(model, input_bound=RANGE)
    whole, stream = options.out / "whole.onnx", options.out / "stream.onnx"
    options.out.mkdir(parents=True, exist_ok=True)
    for file in (whole, stream):
        export(model, options.window, file, streaming=file == stream, example=series[:4, :50], input_bound=RANGE)
    found = compare(model, whole, stream, series)
    full = slice(options.window - 1, None)
    difference = np.abs(found.program - found.recurrent)
    print(
        f"The LSTM has the certified rate {report.rate:.4f}; the programs see the last {options.window} inputs. Their "
        f"answers differ from each other by at most {found.apart:.0e}. From a full window on they differ from those of "
        f"the recurrent LSTM by at most {difference[:, full].max():.1e}. The bounds beside them are "
        f"{found.bound[:, full].min():.1e} to {found.bound[:, full].max():.1e}; of all {difference.size} differences, "
        f"{int((difference > found.bound).sum())} are above their bound."
    )
    print(save(draw(found, options.window), options.out / "feed-forward-onnx.png"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    main()
