"""Make the table and the figure of ``docs/which-window.md`` from the models of a demo.

python docs/windows.py runs/demo docs/images/which-window.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_stable import certify
from lightning_stable.datamodules import PythonDocsDataModule
from lightning_stable.diagnostics import TruncationProfile, truncation_profile
from lightning_stable.figures import BOUND_COLOURS, axes, log_axis, save
from lightning_stable.models import LanguageModel
from lightning_stable.stability import FiniteSet, StabilityReport

TOLERANCES, LONGEST, PIECE = (0.1, 0.01, 0.001), 150, 256
COVERAGE, CONFIDENCE = 0.9, 0.9


class Found(NamedTuple):
    """What is known about the windows of one model."""

    profile: TruncationProfile
    report: StabilityReport


@torch.no_grad()
def measure(checkpoint: Path) -> Found:
    """Profile a model on the test text, in pieces, and certify it."""
    data = PythonDocsDataModule()
    data.setup("test")
    text = data.stream("test")
    pieces = text[: len(text) // PIECE * PIECE].view(-1, PIECE)
    model = LanguageModel.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    inputs, table = model.embedding(pieces), FiniteSet(model.embedding.weight)
    profile = truncation_profile(model.core, inputs, LONGEST, input_bound=table)
    return Found(profile, certify(model))


def row(found: Found, tolerance: float) -> str:
    """Return a row of the page's table."""
    profile = found.profile
    windows = (
        profile.required_window(tolerance),
        profile.required_window(tolerance, coverage=COVERAGE, confidence=CONFIDENCE),
        profile.tube_window(tolerance),
    )
    shown = (f"more than {LONGEST}" if window is None else str(window) for window in windows)
    least = float(profile.tube[-1])
    *measured, tube = shown
    certified = found.report.required_window(tolerance)
    tube = tube if least < profile.output_norm else "none"
    return " | ".join((f"{tolerance:g}", *measured, tube, "none" if certified is None else str(certified)))


def plot(found: Found, path: Path) -> Path:
    """Draw the errors and bounds of the stable model by window."""
    longest = found.report.required_window(min(TOLERANCES)) or 1000
    worst = found.report.bounds[0].errors(longest)
    figure, (panel,) = axes((7.5, 4))
    curves = (
        (found.profile.max_error, "measured, the largest", BOUND_COLOURS["measured"]),
        (found.profile.tube, "certified for these inputs (tube)", BOUND_COLOURS["tube"]),
        (worst, "certified for every input (worst case)", BOUND_COLOURS["certified"]),
    )
    for values, label, colour in curves:
        panel.plot(range(1, len(values) + 1), values.tolist(), color=colour, label=label)
    panel.axhline(found.profile.output_norm, color="black", linestyle=":", linewidth=1, label="norm of the outputs")
    panel.set(xscale="log", yscale="log", ylim=(min(TOLERANCES) / 10, 2 * float(worst[0])))
    panel.set(xlabel="window (inputs)", ylabel="error of the output (Euclidean norm)")
    log_axis(panel, "x", subs=(1, 3))
    panel.legend(frameon=False, loc="lower left")
    return save(figure, path)


def main(run: Path, figure: Path) -> None:
    """Print the rows, and write the figure."""
    models = {name: measure(run / name / "checkpoints" / "best.ckpt") for name in ("stable", "unconstrained")}
    for name, found in models.items():
        print(f"{name}: norm of the outputs {found.profile.output_norm:.2f}, rate {found.report.rate:.6g}")
        for tolerance in TOLERANCES:
            print(f"| {row(found, tolerance)} |")
    print(plot(models["stable"], figure))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
