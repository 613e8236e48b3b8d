"""The example measures what its page says, and its bounds hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bad_reading
import pytest
import torch

SMALL = SimpleNamespace(epochs=1, hidden_size=6, rate=0.9, seed=0)


@pytest.fixture
def series() -> torch.Tensor:
    return bad_reading.readings(4, bad_reading.BEFORE + 41, torch.Generator().manual_seed(3))


def test_readings_are_in_the_range_of_the_sensor() -> None:
    series = bad_reading.readings(200, 100, torch.Generator().manual_seed(0))
    assert series.shape == (200, 100, 1)
    assert series.abs().max() <= bad_reading.RANGE
    assert series.var().item() == pytest.approx(2.0, rel=0.15)


def test_a_stable_model_is_back_when_it_is_certified_to_be(series: torch.Tensor) -> None:
    model = bad_reading.recover(bad_reading.train(True, SMALL), series)
    assert model.report.rate <= 0.9
    assert model.tube is not None
    assert len(model.tube) == 39
    assert (model.state[1:] <= model.tube[: len(model.state) - 1]).all()
    assert (model.tube <= model.worst_case[: len(model.tube)] + 1e-9).all()
    assert (model.forecast <= model.gain * model.state + 1e-6).all()
    measured, tube, certified = (
        bad_reading.first_within(model.forecast, bad_reading.TOLERANCE), model.tube_time(), model.certified_time(),
    )  # fmt: skip
    assert measured is not None
    assert tube is not None
    assert certified is not None
    assert 0 < measured <= tube <= certified


def test_of_an_uncertified_model_nothing_is_promised(series: torch.Tensor) -> None:
    model = bad_reading.train(False, SMALL)
    with torch.no_grad():
        model.core.weight_hh_l0.mul_(20)
    found = bad_reading.recover(model, series)
    assert found.tube is found.tube_time() is found.certified_time() is None
    assert torch.isinf(found.worst_case).all()
    assert "No useful bound is certified" in bad_reading.describe("unconstrained", found)


def test_the_last_excess_counts() -> None:
    assert bad_reading.first_within(torch.tensor([3.0, 0.0, 2.0, 1.0, 0.0]), 1.0) == 3
    assert bad_reading.first_within(torch.tensor([0.0, 2.0]), 1.0) is None
    assert bad_reading.first_within(torch.tensor([0.0]), 1.0) == 0


def test_the_script_writes_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bad_reading, "AFTER", 30)
        bad_reading.main(["--out", str(tmp_path / "new"), "--epochs", "1", "--hidden-size", "4"])
    printed = capsys.readouterr().out
    assert "The unconstrained model errs by" in printed
    assert "Certified, whatever the bad reading was" in printed
    assert (tmp_path / "new" / "bad-reading.png").stat().st_size > 20_000


@pytest.mark.slow
def test_stability_costs_little_here_and_halves_the_recovery() -> None:
    options = SimpleNamespace(epochs=15, hidden_size=32, rate=0.98, seed=1)
    series = bad_reading.readings(64, 301, torch.Generator().manual_seed(2))
    free, stable = (bad_reading.recover(bad_reading.train(kind, options), series) for kind in (False, True))
    assert stable.usual < 1.02 * free.usual
    times = [bad_reading.first_within(model.forecast, bad_reading.TOLERANCE) for model in (stable, free)]
    assert times[0] is not None
    assert times[1] is None or times[0] < times[1]
