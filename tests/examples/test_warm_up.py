"""The example measures what its page says, on small catchments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm_up

from lightning_stable.truncation import truncate

SMALL = SimpleNamespace(epochs=1, hidden_size=4, rate=0.9, seed=0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture(scope="module")
def stable() -> warm_up.SequenceRegressor:
    return warm_up.train(True, SMALL)


def test_water_is_not_made() -> None:
    weather, discharge = warm_up.catchments(8, 1500, generator())
    assert weather.shape == (8, 1500, 2)
    assert weather.min() >= 0
    assert weather.max() <= 1
    rain = warm_up.MOST_RAIN * weather[..., 0].mean()
    assert 0.2 * rain < discharge.mean() < rain


def test_dry_weather_empties_the_slow_store_at_its_rate() -> None:
    keep = 1 - 1 / warm_up.SLOW
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "MOST_RAIN", 1e-9)
        _, discharge = warm_up.catchments(2, 50, generator())
    assert (discharge[:, 1:] / discharge[:, :-1] == pytest.approx(keep, rel=1e-3)) is True


def test_windows_are_in_order_and_errors_settle(stable: warm_up.SequenceRegressor) -> None:
    new = warm_up.catchments(60, 90, generator())
    found = warm_up.examine(stable, new, longest=60)
    known = found.windows
    assert found.rate <= 0.9
    assert known.measured is not None
    assert known.tube is not None
    assert known.certified is not None
    assert known.measured == known.statistical <= known.tube <= known.certified
    assert found.lengths[-1] == 60
    with torch.no_grad():
        answers, few = (truncate(stable, length)(new.weather) for length in (60, known.certified))
    assert (answers - few).abs().max() <= 2 * warm_up.TOLERANCE
    assert found.errors[-1] == pytest.approx(found.errors[-2], abs=warm_up.TOLERANCE)


def test_an_error_is_that_of_a_run_from_zero(stable: warm_up.SequenceRegressor) -> None:
    new = warm_up.catchments(2, 40, generator())
    days = range(19, 40, 10)
    with torch.no_grad():
        answers = torch.stack([stable(new.weather[:, day - 4 : day + 1])[:, -1, 0] for day in days], 1)
    expected = (answers - new.discharge[:, list(days), 0]).square().mean().sqrt().item()
    assert warm_up.errors_after(stable, new, [5, 20])[0] == pytest.approx(expected, rel=1e-5)


def test_too_few_days_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        warm_up.main(["--days", "365"])
    assert "--days: must be at least 366. Got 365" in capsys.readouterr().err


def test_the_script_writes_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "CUSTOM", 30)
        patch.setattr(warm_up.examine, "__defaults__", (30,))
        words = ["--out", str(tmp_path / "new"), "--epochs", "1", "--hidden-size", "3", "--days", "60", "--rate", "0.8"]
        warm_up.main(words)
    printed = capsys.readouterr().out
    assert printed.count("mm a day after 30 days of warm-up") == 2
    assert (tmp_path / "new" / "warm-up.png").stat().st_size > 20_000
