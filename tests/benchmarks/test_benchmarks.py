from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.certificates import certificates
from benchmarks.figures import draw_curves, draw_ratios
from benchmarks.limits import limits
from benchmarks.overhead import overhead
from benchmarks.peers import RATE, peers
from benchmarks.profile import profile_against_runs
from benchmarks.projection import gated, quadratic, spectral, svd_clamp
from benchmarks.scaling import (
    BASE,
    PROJECTION_BASE,
    callbacks,
    fitted_exponent,
    projection_scaling,
    scaling,
    world_sizes,
)
from benchmarks.scan import scan
from benchmarks.shadow import shadow
from benchmarks.timing import compared
from benchmarks.truncation import in_turn, peak_memory, truncation_against_naive
from benchmarks.tube import exported, tube
from benchmarks.validations import validations


def test_sides_are_timed_in_turn() -> None:
    calls: list[str] = []
    seconds = in_turn({name: partial(calls.append, name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3  # once to warm up
    assert all(len(durations) == 2 and min(durations) > 0 for durations in seconds.values())


def test_the_clip_is_compared_with_the_true_projection_on_a_real_training() -> None:
    eigh, chebyshev, products = spectral(sizes=(16,), steps=4)
    assert eigh.error < 1e-6
    assert chebyshev.error < 2e-5
    assert products.error < 2e-5
    assert eigh.ratio > 0


def test_the_clip_in_a_form_ends_at_the_rate_on_a_real_training() -> None:
    (row,) = quadratic(sizes=(16,), steps=4)
    assert (row.name, row.baseline) == ("rnn full", "rnn l2")
    assert row.error < 1e-5


def test_tubes_are_compared_with_windows_and_programs() -> None:
    rows = list(tube(shapes=((4, 3, 2),), rounds=2))
    assert [row.baseline for row in rows] == ["windows", "program"] * 3


@pytest.mark.slow
def test_exported_programs_are_compared_with_those_without_bounds() -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    (row,) = exported(shapes=((6, 3, 2),), rounds=2, cells=("rnn",))
    assert row.baseline == "ONNX"
    assert row.ratio < 1  # with bounds there is more to compute


def test_certificates_are_a_part_of_an_epoch() -> None:
    (row,) = validations(cells=("gru",), units=4, epochs=2, batches=2)
    assert 0 < row.ours_seconds < row.baseline_seconds
    assert 0 < row.extra["one certificate in %"] < row.extra["share in %"] < 100


def test_floors_are_measured_beside_the_whole() -> None:
    rows = list(limits((("rnn", 12), ("lstm", 4)), ((12, 2, 4, 3),), (24,), steps=2, rounds=2))
    assert [row.name for row in rows[:5]] == ["projection rnn"] * 2 + ["projection lstm"] * 2 + ["exact clip rnn"]
    assert rows.pop(4).baseline == "its decomposition alone"
    assert [row.baseline for row in rows] == ["its products alone", "its memory alone"] * 5
    assert all(0 < row.ratio < 1 for row in rows)


def test_gated_projections_are_compared_with_the_plain_one() -> None:
    rows = list(gated(sizes=(8,), steps=2))
    assert len(rows) == 6
    assert all(row.error < 1e-4 for row in rows)


def test_one_process_is_timed_as_several_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def seconds(callbacks: object, *, processes: int, clocked: bool, **settings: object) -> float:
        asked.append((processes, clocked))
        return 1.0

    monkeypatch.setattr("benchmarks.scaling.step_seconds", seconds)
    list(world_sizes((1, 2), rounds=1))
    assert asked == [(1, True), (2, True)]


def test_only_the_projection_stays_in_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers._is_installed", lambda module: False)
    with pytest.warns(UserWarning, match="left out of the peers: geotorch, deel-torchlip"):
        rows = {row.name.removeprefix("peer "): row for row in peers(sizes=(24,), steps=2)}
    norms = {name: row.extra["largest norm"] for name, row in rows.items()}
    assert next(iter(rows)) == "no constraint"
    for name in ("ours", "ours, premises checked"):
        assert norms[name] <= RATE
        assert rows[name].error == rows[name].extra["outside"] == 0
    assert norms["svd clamp after the step"] == pytest.approx(RATE, rel=1e-5)
    for name in ("no constraint", "soft penalty", "torch spectral_norm"):
        assert norms[name] > RATE
        assert rows[name].extra["outside"] > 0


@pytest.mark.parametrize(("package", "rows"), [("geotorch", 2), ("deel.torchlip", 1)])
def test_peers_of_other_packages(package: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package, reason="needs the extra `bench`")
    monkeypatch.setattr("benchmarks.peers._is_installed", lambda module: module == package)
    with pytest.warns(UserWarning, match="left out"):
        found = [row for row in peers(sizes=(8,), steps=2) if package.split(".")[0] in row.name]
    assert len(found) == rows
    assert all(row.extra["largest norm"] <= RATE * (1 + 1e-5) for row in found)


def test_certificates_are_never_below_the_norm() -> None:
    rnn, *gated_cells = certificates(sizes=(8,), rounds=3)
    assert 0 <= rnn.error < 1e-9
    assert all(row.ours_seconds > 0 for row in gated_cells)


def test_medians_are_those_of_pairs() -> None:
    row = compared("a", 1, "cpu", "b", [(4.0, 1.0), (3.0, 1.0), (2.0, 2.0)], 0.5)
    assert (row.baseline_seconds, row.ours_seconds, row.ratio) == (3.0, 1.0, 3.0)
    assert row.spread > 0


def test_overhead_of_a_trainer() -> None:
    runs, steps = overhead((("lstm", 4, 3, 9, 6),), runs=2)
    assert (runs.baseline, steps.baseline) == ("plain trainer", "step before")
    assert all(row.baseline_seconds > 0 and row.ours_seconds > 0 for row in (runs, steps))


def test_figures_are_drawn(tmp_path: Path) -> None:
    rows = [compared("a", size, "cpu", "units 8", [(2.0, 1.0)], 0.0) for size in (8, 16)]
    for draw in (draw_ratios, draw_curves):
        draw(rows, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1000
        (tmp_path / "figure.png").unlink()


def test_svd_clamp_is_the_projection() -> None:
    weight = torch.diag(torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(svd_clamp(weight, 0.9), torch.diag(torch.tensor([0.9, 0.5])))


def test_truncation_is_compared_with_what_it_equals() -> None:
    rows = list(truncation_against_naive(((12, 2, 4, 3),), rounds=2))
    assert len(rows) == 3 * 2 * 4
    assert all(row.error < 1e-6 for row in rows if row.baseline == "naive windows")
    assert all(row.error < 1e-6 for row in profile_against_runs(units=4, time=36, batch=2, rounds=2))


def test_the_twin_and_the_callbacks_are_timed_in_whole_steps() -> None:
    rows = list(shadow((("rnn", 3),), units=4, vocabulary=9, runs=2, steps=6))
    rows += callbacks(1, units=4, vocabulary=9, runs=2, steps=6)
    assert [row.name for row in rows[:2]] == ["trainer rnn with twin k=3", "projection with 1 process"]
    assert all(row.baseline_seconds > 0 and row.ours_seconds > 0 for row in rows)


def test_exponents_are_fitted() -> None:
    assert fitted_exponent({2: 4.0, 4: 16.0, 8: 64.0}) == pytest.approx(2)
    rows = list(scaling({"units": (2, 4), "layers": (1, 2)}, {**BASE, "time": 8, "window": 3, "batch": 2}, rounds=2))
    assert [row.size for row in rows] == [2, 4, 1, 2]
    assert rows[0].ratio == 1
    assert all("exponent" in row.name for row in rows)
    curves = (("projection", "rnn", "units", (4, 8)), ("certificate", "lstm", "words", (3, 6)))
    rows = list(projection_scaling(curves, {**PROJECTION_BASE, "units": 4, "words": 5, "features": 3}, rounds=2))
    assert [row.size for row in rows] == [4, 8, 3, 6]
    assert rows[2].name.startswith("certificate lstm over words (exponent ")
    assert [row.size for row in world_sizes((1, 2), rounds=1, units=4)] == [1, 2]


@pytest.mark.slow
def test_truncation_needs_a_fraction_of_the_memory() -> None:
    sides = dict(peak_memory())
    assert sides["naive"] > 8 * sides["windowed"]


def test_scan() -> None:
    rows = list(scan(((9, 2, 4),), rounds=2))
    assert [(row.name.split(" T=")[0], row.baseline) for row in rows] == [
        ("mingru scan", "loop"),
        ("mingru windows k=25", "scan"),
    ]
    assert rows[0].error < 1e-6
