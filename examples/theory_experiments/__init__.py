"""What the experiments share: a projected step, and how a finding is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display, and no state left in the user's process
from rich.table import Table
from torch import Tensor, nn

from lightning_stable import project_

BLUES = ("#08306b", "#2171b5", "#4a98c9", "#7fb9da", "#b0d2e8")
GREY, RED = "#8c8c8c", "#c0392b"


@dataclass(frozen=True)
class Finding:
    """What an experiment hands back: its numbers (ready for JSON), and how to show them."""

    statement: str
    held: bool
    numbers: dict[str, Any]
    table: Table
    figure: Figure


def descend(model: nn.Module, descent: Sequence[Tensor], step_size: float, rate: float | None) -> None:
    """A step along a gradient, projected onto ``rate`` unless that is None."""
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), descent, strict=True):
            parameter.sub_(step_size * gradient)
    if rate is not None:
        project_(model, rate=rate)


def log_panels(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side, logarithmic in y."""
    figure = Figure(figsize=(4.2 * panels, 4.2), layout="constrained")
    figure.suptitle(title)
    row: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in row:
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, row
