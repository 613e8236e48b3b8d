"""The experiments from end to end, tiny."""

from __future__ import annotations

import builtins
import csv
import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from lightning_stable import cli
from lightning_stable.commands.capacity import ExperimentName
from lightning_stable.experiments.capacity import capacity
from lightning_stable.experiments.capacity.bits import Bits
from lightning_stable.experiments.capacity.budgets import BUDGETS, Budget
from lightning_stable.experiments.capacity.options import CapacityOptions
from lightning_stable.experiments.capacity.reals import Reals
from lightning_stable.experiments.capacity.trainability import Trainability
from lightning_stable.models import CELLS
from tests.experiments.capacity.tiny import Tiny

COMMON = {"cell", "layers", "units", "parameters", "stable", "trials", "seconds", "seed", "hyperparameters"}


def read(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())
    assert isinstance(rows, list)
    assert (out / "results.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((out / "results.csv").open()))) == len(rows)
    return rows


@pytest.mark.usefixtures("here")
def test_bits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    budget = Budget(("rnn",), (1,), (40, 80), 1, 3)
    assert capacity.measure(Bits(), budget, tmp_path, CapacityOptions(jobs=1)) == 0
    printed = capfd.readouterr().out
    assert "4 trials to go, 1 at a time, about" in " ".join(printed.split())
    assert "Fitted bits per parameter" in printed
    rows = read(tmp_path)
    assert [(row["units"], row["stable"]) for row in rows] == [(3, False), (3, True), (5, False), (5, True)]
    for row in rows:
        assert row.keys() >= COMMON
        assert row["bits_per_parameter"] == pytest.approx(row["bits"] / row["parameters"], abs=1e-4)
        assert row["patterns"] == round(row["hyperparameters"]["load"] * row["parameters"])
        assert (row["rate"] is not None and row["rate"] <= 0.99) == row["stable"]
    trials = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert len(trials) == 4
    assert all(trial["seed"] and trial["steps"] == "3" for trial in trials)

    # Nothing is overwritten, and what is finished is kept.
    with pytest.raises(ValueError, match="`--out` must have no searches"):
        capacity.measure(Bits(), budget, tmp_path, CapacityOptions(jobs=1))
    assert capacity.measure(Bits(), budget, tmp_path, CapacityOptions(jobs=1, resume=True)) == 0
    assert "0 trials to go" in " ".join(capfd.readouterr().out.split())
    assert read(tmp_path) == rows


@pytest.mark.usefixtures("here")
def test_reals(tmp_path: Path) -> None:
    assert capacity.measure(Reals(), Budget(("gru",), (1,), (2,), 2, 3), tmp_path, CapacityOptions(jobs=1)) == 0
    for row in read(tmp_path):
        assert row.keys() >= COMMON
        assert row["reals_per_unit"] == pytest.approx(row["reals"] / 2, abs=1e-3)
        assert [each["values"] for each in row["errors"]] == [1, 2]
        assert row["reals"] <= 2


@pytest.mark.usefixtures("here")
def test_trainability(tmp_path: Path) -> None:
    budget = Budget(("rnn",), (1, 2), (60,), 1, 2, ("function", "perceptron"))
    assert capacity.measure(Trainability(), budget, tmp_path, CapacityOptions(jobs=1)) == 0
    rows = read(tmp_path)
    assert len(rows) == 8
    for row in rows:
        assert row.keys() >= COMMON | {"task", "good_fraction", "best_loss"}
        assert 0 <= row["good_fraction"] <= 1
    # Every network is given the same random hyperparameters.
    assert len({json.dumps(row["hyperparameters"]) for row in rows}) == 1


def test_good_is_half_the_way_to_the_best_of_the_task() -> None:
    rows = [
        {"task": "a", "best_loss": 0.2, "losses": [0.2, 0.6, 0.7]},
        {"task": "a", "best_loss": 0.59, "losses": [0.59, 1.0]},
        {"task": "b", "best_loss": 1.0, "losses": [1.0]},
    ]
    assert [row["good_fraction"] for row in Trainability().finish(rows)] == [0.6667, 0.5, 0.0]


@pytest.mark.usefixtures("here")
def test_a_point_without_a_result_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Tiny(broken=(1, 2))
    assert capacity.measure(broken, Budget(("rnn",), (1,), (1,), 2, 1), tmp_path, CapacityOptions(jobs=1)) == 1
    printed = " ".join(capfd.readouterr().out.split())
    assert "nothing/rnn-1x3 has no result: ValueError: `x` must be whole." in printed
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_budgets_name_cells_that_exist() -> None:
    assert sorted(BUDGETS) == sorted(get_args(ExperimentName))
    for budgets in BUDGETS.values():
        assert set(budgets["small"].cells) <= set(CELLS)
        assert set(budgets["paper"].cells) == set(CELLS) - {"leaky", "mingru", "minlstm"}  # the paper's
        assert set(budgets["paper"].layers) == {1, 2, 4, 8}
    assert len(BUDGETS["bits"]["small"].sizes) >= 4


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def fake(*arguments: Any) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(capacity, "run", fake)
    assert cli.main(["capacity", "reals"]) == 0
    words = ["--out", str(tmp_path), "--seed", "4", "--budget", "paper", "--jobs", "3", "--cells", "rnn", "gru"]
    more = ["--trials", "9", "--steps", "8", "--resume", "--storage", "sqlite:///there.db", "--data-dir", "."]
    assert cli.main(["capacity", "trainability", *words, *more]) == 0
    name, out, options = calls[0]
    assert (name, out) == ("reals", Path("runs/capacity-reals"))
    assert vars(options) == vars(CapacityOptions()) | {"experiment": "reals"}
    name, out, options = calls[1]
    assert (name, out) == ("trainability", tmp_path)
    expected = CapacityOptions("paper", tmp_path, 4, 3, ("rnn", "gru"), 9, 8, True, "sqlite:///there.db", Path())
    assert vars(options) == vars(expected) | {"experiment": "trainability"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bits", "--cells", "transformer"], "`--cells` must be one of"),
        (["bits", "--data-dir", "."], "`--data-dir` has a meaning for trainability only"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["capacity", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_extra_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, capacity.__name__)
    monkeypatch.delattr(capacity.__name__)
    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["capacity", "bits"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'lightning-stable[capacity]'. Got no optuna." in error
    assert error.count("\n") == 1
