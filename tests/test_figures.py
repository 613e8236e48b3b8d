from pathlib import Path

import pytest

from lightning_stable.figures import axes, log_axis, plot_decay, save


def test_a_logarithmic_axis_shows_plain_numbers() -> None:
    figure, (panel,) = axes((3, 2))
    panel.plot([1, 30], [1, 2])
    log_axis(panel, "x")
    figure.draw_without_rendering()
    assert panel.get_xscale() == "log"
    assert {"1", "2", "5", "10", "20"} <= {label.get_text() for label in panel.get_xticklabels()}
    assert not panel.xaxis.get_minorticklocs().size


def test_no_legend_lies_over_a_curve() -> None:
    kinds = ("certified", "tube", "largest", "mean", "level")
    curves = [(kind, f"a rather long name of the {kind}", [1.0, 0.5, 0.1]) for kind in kinds]
    figure = plot_decay([1, 2, 3], curves, xlabel="window", ylabel="error", title="title")
    figure.draw_without_rendering()
    (legend,), (panel,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == len(kinds)
    assert not legend.get_window_extent().overlaps(panel.bbox)


def test_panels_come_row_by_row_and_are_written_into_a_new_folder(tmp_path: Path) -> None:
    figure, panels = axes((3, 2), 2, 2, title="four", sharex=True)
    assert len(panels) == 4
    assert panels[1].get_position().y0 == pytest.approx(panels[0].get_position().y0)
    assert figure.get_suptitle() == "four"
    assert save(figure, tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
