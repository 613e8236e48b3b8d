"""What is said about the runs of a model, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from lightning_stable.experiments.reproduce import figures
from lightning_stable.experiments.reproduce.figures import plot_results
from lightning_stable.experiments.reproduce.summary import summarized
from lightning_stable.experiments.reproduce.tables import results_table
from lightning_stable.experiments.reproduce.task import read_task
from lightning_stable.experiments.results import Row
from tests.experiments.reproduce.tiny import TEXT

TASK = read_task(TEXT, "linear")


def row(core: str, stable: bool = False, window: int | None = None, **values: Any) -> Row:
    recurrent: Row = {"rate": 0.5, "inputs": "|x| <= 5", "input_guarantee": "guaranteed", "recurrent_norm": 2.0}
    figures: Row = {"validation": 1.0, "test": 2.0, "seconds": 3.0, "epochs": 4, "parameters": 5, "seed": 0}
    rest: Row = {"gates": {"i": 0.25, "o": 1.5}, "receptive_field": window, "published": []}
    return {"core": core, "stable": stable, "window": window} | recurrent | figures | rest | values


TCN = row("tcn", rate=None, inputs=None, input_guarantee="none", recurrent_norm=None, gates={}, receptive_field=3)


def shown(rows: list[Row]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(results_table(TASK, summarized(rows), None))
    return captured.get()


def test_means_and_spreads_over_seeds() -> None:
    rows = [
        row("lstm", test=1.0, rate=0.4, gates={"i": 0.5, "o": 1.0}),
        row("gru"),
        row("lstm", test=2.0, rate=0.9, gates={"i": 0.1, "o": 3.0}, seed=1),
        row("lstm", test=3.0, rate=0.6, seed=2, recurrent_norm=5.0),
    ]
    lstm, gru = summarized(rows)
    assert (lstm["core"], gru["core"]) == ("lstm", "gru")
    assert (lstm["test"], lstm["test_spread"], lstm["seeds"]) == (2.0, 1.0, [0, 1, 2])
    assert (lstm["rate"], lstm["recurrent_norm"]) == (0.9, 3.0)
    assert lstm["gates"] == {"i": 0.5, "o": 3.0}
    assert (gru["test"], gru["test_spread"], gru["seeds"]) == (2.0, None, [0])
    without = summarized([row("lstm"), row("lstm", rate=None, seed=1)])
    assert without[0]["rate"] is None  # one of them has no certificate


def test_the_table_says_what_a_guarantee_is_about() -> None:
    text = shown([row("lstm", rate=389.0), row("lstm", True), row("lstm", True, seed=1, test=2.5), TCN])
    assert "certified rate: a bound for all inputs of the declared set, |x| <= 5; stable below 1" in text
    assert "guaranteed" not in text
    assert "i 0.25 o 1.50" in text
    assert "2.250 ± 0.35" in text
    assert "±: standard deviation over 1 or 2 seeds" in text
    derived = shown([row("rnn", input_guarantee="derived", inputs="embedding")])
    assert "0.500000 (derived)" in derived
    assert "certified rate (derived): a bound for all inputs the traced model lets through; stable below 1" in derived
    assert "±" not in derived
    assert "rate:" not in shown([TCN])


def test_whole_markers_and_bars_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []

    def save(figure: Figure, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(figures, "save", save)
    published = [{"core": "rnn", "value": 9.0, "source": "Somebody", "status": "published", "stable": None}]
    rows = [
        row("rnn", published=published),
        row("rnn", test=4.0, seed=1, published=published),
        row("rnn", True, 3),
        TCN,
    ]
    plot_results(TASK, summarized(rows), None, tmp_path / "results.png")
    (panel,) = drawn[0].axes
    low, high = sorted(panel.get_ylim())
    marks = [line for line in panel.lines if line.get_marker() in ("o", "x")]
    assert len(marks) == 4
    for mark in marks:
        assert not mark.get_clip_on()
        assert all(low + 0.5 <= y <= high - 0.5 for y in mark.get_ydata())
    bars = [bar for container in panel.containers for bar in container[2]]
    ((left, _), (right, _)) = bars[0].get_segments()[0]
    assert right - left == pytest.approx(2 * 2**0.5)  # twice the deviation of 2 and 4
    assert len(bars) == 1
