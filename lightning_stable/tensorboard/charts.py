"""The charts of the page, and the values that stand beside each other in them.

TensorBoard gives every run a colour, not every line: what is to be compared goes under one tag of several runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PAGE = "Stability"
TARGET = "stability/target"
# Titles with the tags they show.
Charts = dict[str, list[str]]
Values = dict[str, float]


def projection_charts(layers: Iterable[str]) -> Charts:
    """Return the charts of what a projection does and of what it leaves of layers, given by name.

    The certified rate is none of them: it lies at its target whatever happens. What moves is how hard training pushes
    against the projection, and how much of the recurrent weights is left.
    """
    charts = {
        "How far a projection moves the weights": ["stability/projection_distance"],
        "Norm of the recurrent weights, over that at the start": [
            f"stability/{name}/recurrent_norm_kept" for name in layers
        ],
    }
    return {title: tags for title, tags in charts.items() if tags}


def comparison_charts(name: str) -> Charts:
    """Return the charts of losses and distances of a model and of the twins that log under ``name``."""
    return {
        "Loss of the model and of the twin, training": [f"{name}/compared/loss"],
        "Loss of the model and of the twin, validation": [f"{name}/compared/val_loss"],
        "Weight distance, relative, and rate ** window": [f"{name}/compared/weight_distance"],
        "Prediction distance, relative, and rate ** window": [f"{name}/compared/prediction_distance"],
    }


def window_chart(modules: Iterable[str]) -> Charts:
    """Return the chart of the required windows of recurrent modules, measured, statistical and certified."""
    return {
        "Required window: measured, statistical, tube (none above the sequence length); certified": [
            f"truncation/{name}/required_window" for name in modules
        ]
    }


def layout(charts: Mapping[str, Iterable[str]], prefix: str = "") -> dict[str, dict[str, list[str | list[str]]]]:
    """Return the page as ``SummaryWriter.add_custom_scalars`` takes it: a tag becomes a pattern that matches it alone.

    Args:
        charts: Tags by title.
        prefix: What stands before every tag.
    """
    patterns = {title: [f"^{re.escape(prefix + tag)}$" for tag in tags] for title, tags in charts.items()}
    return {PAGE: {title: ["Multiline", tags] for title, tags in patterns.items()}}


def compared(values: Mapping[str, float], level: float | None = None) -> tuple[Values, Values, Values]:
    """Sort what a shadow callback logs for the runs of the model, of the twin and of the theory.

    Args:
        values: Any of ``loss`` and ``loss_gap``, both with ``val_``, and the relative distances.
        level: ``rate ** window`` for the certified rate, with which the distances are compared; None without one.

    Returns:
        The values of the model, of the twin and of the theory, by the names ``loss``, ``val_loss``,
        ``weight_distance`` and ``prediction_distance``: losses for the model, all of them for the twin, distances for
        the theory.
    """
    losses = [name for name in ("loss", "val_loss") if f"{name}_gap" in values]
    distances = [name for name in ("weight_distance", "prediction_distance") if f"{name}_relative" in values]
    model = {name: values[name] - values[f"{name}_gap"] for name in losses}
    twin = {name: values[name] for name in losses} | {name: values[f"{name}_relative"] for name in distances}
    return model, twin, {} if level is None else dict.fromkeys(distances, level)
