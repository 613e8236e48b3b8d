from __future__ import annotations

import pytest
import torch

from benchmarks.projection import clip_against_svd, svd_clamp
from benchmarks.timing import interleave
from benchmarks.truncation import peak_memory, profile_against_runs, truncation_against_naive


def test_both_sides_are_timed_in_turn() -> None:
    calls: list[str] = []
    times = interleave(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0.0)
    assert calls == ["a", "b"] * 6  # once to warm up, then at least five times
    assert all(seconds > 0 for seconds in times)


def test_the_clip_is_compared_with_the_true_projection() -> None:
    (row,) = clip_against_svd(sizes=(16,))
    assert row.error < 2e-7
    assert row.ratio == pytest.approx(row.baseline_seconds / row.ours_seconds)


def test_svd_clamp_is_the_projection() -> None:
    weight = torch.diag(torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(svd_clamp(weight, 0.9), torch.diag(torch.tensor([0.9, 0.5])))


def test_truncation_is_compared_with_what_it_equals() -> None:
    rows = list(truncation_against_naive(((12, 2, 4, 3),), seconds=0.0))
    compared = [row for row in rows if row.baseline == "naive windows"]
    assert len(compared) == 6
    assert all(row.error < 1e-6 for row in compared)
    assert all(row.error < 1e-6 for row in profile_against_runs(units=4, time=12, batch=2, seconds=0.0))


@pytest.mark.slow
def test_truncation_needs_a_fraction_of_the_memory() -> None:
    sides = dict(peak_memory())
    assert sides["naive"] > 8 * sides["windowed"]
