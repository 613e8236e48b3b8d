"""The figure of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from lightning_stable.experiments.reproduce.task import Task
from lightning_stable.experiments.results import Row
from lightning_stable.figures import MODEL_COLOURS, axes, save


def plot_results(task: Task, rows: Sequence[Row], floor: float | None, path: Path) -> Path:
    """Draw a dot per model, those of a core together, filled if recurrent; published figures as crosses.

    Bars are one standard deviation over seeds to each side.
    """
    cores = list(dict.fromkeys(row["core"] for row in rows))
    figure, (panel,) = axes((7.5, 1.3 + 0.16 * len(rows) + 0.3 * len(cores)))
    height, middles = 0.0, []
    for core in cores:
        of_core = [row for row in rows if row["core"] == core]
        middles.append(height + (len(of_core) - 1) / 2)
        for row in of_core:
            family = (
                "convolutional" if row["recurrent_norm"] is None else "stable" if row["stable"] else "unconstrained"
            )
            colour, window = MODEL_COLOURS[family], row["window"]
            face = "white" if window else colour
            panel.errorbar(
                row["test"],
                height,
                xerr=row["test_spread"],
                fmt="o",
                color=colour,
                markerfacecolor=face,
                markersize=7,
                capsize=3,
                zorder=3,
                clip_on=False,
            )
            if window:
                place = (row["test"] + (row["test_spread"] or 0.0), height)
                panel.annotate(
                    f"{window}", place, (7, 0), textcoords="offset points", va="center", size=7, color=colour
                )
            for published in row["published"]:
                alpha = 1.0 if published["status"] == "published" else 0.35
                cross: dict[str, Any] = {
                    "color": "#b3261e",
                    "alpha": alpha,
                    "markersize": 6,
                    "zorder": 2,
                    "clip_on": False,
                }
                panel.plot(published["value"], height, "x", **cross)
            height += 1
        if core != cores[-1]:
            panel.axhline(height + 0.4, color="#dddddd", linewidth=0.8)
        height += 1.8
    if floor is not None:
        panel.axvline(floor * task.metric.scale, color="black", linestyle=":", linewidth=1)
    tests = [row["test"] for row in rows]
    if min(tests) > 0 and max(tests) > 100 * min(tests):  # one model solves the task, another does not
        panel.set_xscale("log")
    marks = [
        Line2D([], [], marker="o", linestyle="", color=MODEL_COLOURS["unconstrained"], label="unconstrained"),
        Line2D([], [], marker="o", linestyle="", color=MODEL_COLOURS["stable"], label="stable"),
        Line2D([], [], marker="o", linestyle="", color="black", markerfacecolor="white", label="truncated, its window"),
        Line2D([], [], marker="o", linestyle="", color=MODEL_COLOURS["convolutional"], label="convolutional"),
        Line2D([], [], marker="x", linestyle="", color="#b3261e", label="literature (pale: recalled)"),
    ]
    if any(row["test_spread"] is not None for row in rows):
        marks.append(Line2D([], [], marker="|", color="black", label="standard deviation over seeds"))
    panel.set_yticks(middles, cores)
    panel.set_ylim(height - 2.1, -0.7)  # from top to bottom, with room for whole markers
    panel.grid(visible=False, axis="y")
    panel.set(xlabel=f"{task.metric.title}, test ({task.metric.better} is better)", title=task.title)
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)
