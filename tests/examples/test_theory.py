"""The statements of the theory, on small versions of the experiments."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import pytest
import theory
import torch
from torch import nn

from lightning_stable import certify, project_
from lightning_stable.datamodules import LinearSystemDataModule
from lightning_stable.datamodules.linear_system import LinearSystem

# Tests share what they measure.
SMALL = {
    "gradient-gap": cache(partial(theory.gradient_gap, rates=(0.8,), windows=(1, 2, 10, 20))),
    "weight-distance": cache(partial(theory.weight_distance, windows=(2, 20), steps=40)),
    "unstable": cache(partial(theory.unstable, lengths=(20, 100), rates=(0.9, 1.05))),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cell", theory.CELLS)
def test_the_gradient_gap_decays_with_the_certified_rate(cell: str, seed: int) -> None:
    windows = [1, 2, 5, 10, 20]
    batch = theory.training_batches(LinearSystemDataModule(rate=0.95, batch_size=4, seed=seed))[0]
    model, rate = theory.slow_model(cell, 0.8, seed)
    assert rate == certify(model).rate <= 0.8
    gaps = theory.gradient_gaps(model, windows, batch)
    assert all(later < earlier for earlier, later in pairwise(gaps))
    assert gaps[-1] < gaps[1] / 50
    line = theory.theory_line(windows, rate, gaps[0])
    assert all(gap <= bound for gap, bound in zip(gaps[1:], line[1:], strict=True))


def test_the_gap_is_that_of_windows_restarted_from_zero_and_none_at_full_length() -> None:
    length, window = 12, 3
    x, y = theory.training_batches(LinearSystemDataModule(length=length, batch_size=4))[0]
    model, _ = theory.slow_model("LSTM", 0.9, 0)
    windows = [model(x[:, max(0, t - window + 1) : t + 1])[:, -1] for t in range(length)]
    restarted = torch.autograd.grad(nn.functional.mse_loss(torch.stack(windows, 1), y), list(model.parameters()))
    full = theory.gradients(model, (x, y))
    gap = math.hypot(*((a - b).norm().item() for a, b in zip(full, restarted, strict=True)))
    norm = math.hypot(*(value.norm().item() for value in full))
    measured, none = theory.gradient_gaps(model, [window, length], (x, y))
    assert measured == pytest.approx(gap / norm, rel=1e-9)
    assert none < 1e-12


def test_the_weight_distance_falls_with_the_window_and_grows_slower_with_falling_steps() -> None:
    numbers = SMALL["weight-distance"](0).numbers
    falling, constant = numbers["runs"]["1 / t"], numbers["runs"]["0.1"]
    for run in (falling, constant):
        assert run["distances"][1][-1] < run["distances"][0][-1] / 100
        assert run["loss"][-1] < run["loss"][0] / 2
    assert falling["distances"][1][-1] <= numbers["theory"][1]
    assert all(slow < fast for slow, fast in zip(falling["growth"], constant["growth"], strict=True))


def test_growth_is_the_power() -> None:
    assert theory.growth([3 * step**1.5 for step in range(1, 50)]) == pytest.approx(1.5)


@pytest.mark.parametrize("start", [0.95, 1.05])
def test_descent_converges_on_the_stable_system_and_overflows_on_the_unstable_one(start: float) -> None:
    stable = list(theory.identify(0.9, 0.01, start=start))
    assert stable[-1][0] < 1e-3 * stable[0][0]
    free = list(theory.identify(1.05, 0.01, start=start))
    assert not math.isfinite(free[-1][1])
    projected = list(theory.identify(1.05, 0.01, start=start, project=0.99))
    assert len(projected) == 60
    assert max(norm for _, norm in projected) < 1e2
    assert projected[-1][0] <= projected[0][0]


def test_gradients_explode_with_the_length_on_the_unstable_system_only() -> None:
    def norm(rate: float, length: int) -> float:
        return next(theory.identify(rate, 0.01, length=length))[1]

    assert norm(0.9, 200) < 3 * norm(0.9, 50)
    assert norm(1.05, 200) > 1e4 * norm(1.05, 50)


def test_the_linear_cell_is_certified_and_projected() -> None:
    system = LinearSystem(torch.diag(torch.tensor([1.5, 0.2])), torch.ones(2, 1), torch.ones(1, 2), torch.zeros(1, 1))
    cell, x = theory.LinearCell(system), torch.randn(2, 5, 1)
    assert torch.equal(cell(x), system.outputs(x))
    assert certify(cell).rate == pytest.approx(1.5)
    assert project_(cell, rate=0.9).rate <= 0.9
    assert system.A.max() == 1.5


def test_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(theory, "EXPERIMENTS", SMALL)
    assert theory.main(["all", "--out", str(tmp_path / "new"), "--seed", "0"]) == 0
    assert capsys.readouterr().out.count("Held: ") == 3
    for name in SMALL:
        assert (tmp_path / "new" / f"{name}.png").stat().st_size > 20_000
        numbers = json.loads((tmp_path / "new" / f"{name}.json").read_text(), parse_constant=pytest.fail)
        assert numbers["held"] is True
        assert numbers["seed"] == 0


def test_a_statement_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory, "largest_step_size", lambda rate, seed: 1e-9 if rate > 1 else 1.0)  # as it should be
    slow = partial(theory.unstable, step_size=1e-9, lengths=(20,), rates=(0.9, 1.05))
    monkeypatch.setattr(theory, "EXPERIMENTS", {"unstable": slow})
    assert theory.main(["unstable", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "unstable.json").read_text())["held"] is False


def test_one_seed_gives_the_same_numbers() -> None:
    small = SMALL["gradient-gap"]
    assert small.__wrapped__(0).numbers == small(0).numbers != small(1).numbers


@pytest.mark.slow
def test_the_script_runs_with_its_defaults(tmp_path: Path) -> None:
    command = [sys.executable, theory.__file__, "all", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in SMALL for kind in ("png", "json")
    }
