"""A whole task, small, in another process."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI, instantiate_class

from lightning_stable import certify, cli
from lightning_stable.experiments.reproduce import reproduce
from lightning_stable.experiments.reproduce.options import ReproduceOptions
from lightning_stable.experiments.reproduce.task import read_task
from lightning_stable.experiments.reproduce.train import finished
from lightning_stable.files import write_text
from tests.experiments.reproduce.tiny import TEXT

KEYS = [
    "task",
    "core",
    "stable",
    "window",
    "metric",
    "validation",
    "test",
    "rate",
    "inputs",
    "input_guarantee",
    "recurrent_norm",
    "gates",
    "parameters",
    "seconds",
    "seed",
    "published",
]
ONLY = ("rnn-stable", "rnn-stable-k3", "tcn")


def read(out: Path) -> dict[tuple[str, bool, int | None], dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())
    return {(row["core"], row["stable"], row["window"]): row for row in rows}


def test_a_task_from_end_to_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    task, out = read_task(TEXT, "linear"), tmp_path / "out"
    assert reproduce.reproduce(task, out, ReproduceOptions(only=ONLY, jobs=1, seeds=(7,))) == 0
    printed = capfd.readouterr().out
    assert "3 models to train, 1 at a time, about" in printed
    assert "What to expect." in printed
    assert "nothing learned" in printed
    assert "0.5 a" in printed
    rows = read(out)
    assert list(rows) == [("rnn", True, None), ("rnn", True, 3), ("tcn", False, None)]
    stable, truncated, tcn = rows.values()
    assert all(row.keys() >= set(KEYS) for row in rows.values())
    assert stable["published"] == [
        {"core": "rnn", "value": 0.5, "source": "Somebody", "status": "recalled", "stable": True}
    ]
    assert truncated["published"] == []
    assert stable["rate"] <= 0.5
    assert stable["input_guarantee"] == "guaranteed"
    assert stable["recurrent_norm"] > 0
    assert stable["gates"].keys() == {"h"}
    assert tcn["gates"] == {}
    assert (tcn["rate"], tcn["recurrent_norm"]) == (None, None)
    assert {row["seed"] for row in rows.values()} == {7}
    assert (out / "results.png").stat().st_size > 10_000
    table = list(csv.DictReader((out / "results.csv").open()))
    assert table[0]["published"] == "0.5 (recalled, Somebody)"
    assert sorted(path.name for path in (out / "tensorboard").iterdir()) == sorted(ONLY)

    # The checkpoint is the model of the row.
    saved = torch.load(out / "runs" / "rnn-stable" / "checkpoints" / "best.ckpt", weights_only=True)
    config = out / "runs" / "rnn-stable" / "config.yaml"
    model = instantiate_class((), yaml.safe_load(config.read_text())["model"])
    model.load_state_dict(saved["state_dict"])
    assert certify(model, input_bound=5.0).rate == stable["rate"]

    # The configuration is LightningCLI's, and trains the same model once more.
    again = LightningCLI(args=["--config", str(config)], run=False, save_config_callback=None)
    again.trainer.fit(again.model, datamodule=again.datamodule)
    assert again.trainer.callback_metrics["val_loss"].item() >= stable["validation"]

    request.getfixturevalue("here")  # one start of another process is enough
    # What is finished is kept, what was changed or is missing is trained.
    (out / "runs" / "tcn" / "result.json").unlink()
    marked = out / "runs" / "rnn-stable" / "result.json"
    content = json.loads(marked.read_text())
    content["row"]["test"] = 123.0
    marked.write_text(json.dumps(content))
    assert reproduce.reproduce(task, out, ReproduceOptions(only=ONLY, jobs=1, seeds=(7,), resume=True)) == 0
    assert "1 model to train, 1 at a time, about" in capfd.readouterr().out
    assert read(out)["rnn", True, None]["test"] == 123.0
    assert read(out)["tcn", False, None]["test"] == tcn["test"]


def test_what_was_trained_otherwise_is_not_taken_for_finished(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    assert finished(tmp_path) is None
    write_text(config, yaml.safe_dump({"seed_everything": 1}))
    assert finished(tmp_path) is None
    result = {"row": {"test": 1.0}, "config": config.read_text()}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert finished(tmp_path) == {"test": 1.0}
    write_text(config, yaml.safe_dump({"seed_everything": 2}))
    assert finished(tmp_path) is None


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = TEXT.replace("kernel_size: 2", "kernel_size: -2")
    options = ReproduceOptions(only=("rnn", "tcn"), jobs=1)
    assert reproduce.reproduce(read_task(broken, "linear"), tmp_path, options) == 1
    printed = capfd.readouterr().out
    assert "tcn failed:" in printed
    assert "Got -2" in printed.replace("\n", " ")
    assert list(read(tmp_path)) == [("rnn", False, None)]


@pytest.mark.usefixtures("here")
def test_a_run_that_goes_on_keeps_what_others_finished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = read_task(TEXT, "linear")
    assert reproduce.reproduce(task, tmp_path, ReproduceOptions(only=("rnn", "rnn-k3"), jobs=1)) == 0
    assert reproduce.reproduce(task, tmp_path, ReproduceOptions(only=("tcn",), jobs=1, resume=True)) == 0
    assert "; 2 are finished" in capfd.readouterr().out
    found = [("rnn", False, None), ("rnn", False, 3), ("tcn", False, None)]
    assert list(read(tmp_path)) == found
    # Other windows and other seeds as well.
    options = ReproduceOptions(only=("rnn", "rnn-k2"), jobs=1, resume=True, windows=(2,), seeds=(1, 2))
    assert reproduce.reproduce(task, tmp_path, options) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["core"], row["window"], row["seed"]) for row in rows] == [
        *(("rnn", None, 0), ("rnn", None, 1), ("rnn", None, 2)),
        *(("rnn", 2, 1), ("rnn", 2, 2), ("rnn", 3, 0), ("tcn", None, 0)),
    ]
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["seeds"] for row in table] == ["0 1 2", "1 2", "0", "0"]
    assert float(table[0]["test"]) == pytest.approx(sum(row["test"] for row in rows[:3]) / 3)
    assert float(table[0]["test_spread"]) > 0
    assert table[2]["test_spread"] == ""
    # Without --resume nothing is left of them.
    assert reproduce.reproduce(task, tmp_path, ReproduceOptions(only=("tcn",), jobs=1)) == 0
    assert list(read(tmp_path)) == [("tcn", False, None)]


@pytest.mark.usefixtures("here")
def test_its_own_checkpoints_are_certified_and_all_may_read_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = os.umask(0o022)
    try:
        reproduce.reproduce(read_task(TEXT, "linear"), tmp_path, ReproduceOptions(only=("lstm", "lstm-stable"), jobs=1))
    finally:
        os.umask(old)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    for name, status in (("lstm", 1), ("lstm-stable", 0)):
        assert cli.main(["certify", str(tmp_path / "runs" / name / "checkpoints" / "best.ckpt"), "--json"]) == status
        out = capsys.readouterr().out
        layer = json.loads(out[out.index("{\n") :])["layers"][0]
        assert (layer["input_bound"], layer["guarantee"]) == ("|x| <= 5", "guaranteed")
        assert layer["rate"] == read(tmp_path)["lstm", status == 0, None]["rate"]


def test_unknown_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`--only` must name runs of the task: rnn, rnn-k3, .* Got 'gpt'"):
        reproduce.reproduce(read_task(TEXT, "linear"), tmp_path, ReproduceOptions(only=("gpt",)))


def test_half_written_files_are_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "file", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def fake(task: Any, out: Path, options: ReproduceOptions) -> int:
        calls.append((task.name, out, options))
        return 0

    monkeypatch.setattr(reproduce, "reproduce", fake)
    assert cli.main(["reproduce", "copy"]) == 0
    arguments = ["--data-dir", ".", "--out", str(tmp_path), "--seeds", "4", "5", "--budget", "paper", "--baselines"]
    arguments += ["--epochs", "6", "--hidden-size", "32", "--windows", "5", "10"]
    assert cli.main(["reproduce", "jsb", *arguments, "--resume", "--jobs", "3", "--only", "rnn", "tcn"]) == 0
    task, out, options = calls[0]
    assert (task, out) == ("copy", Path("runs/copy"))
    assert vars(options) == vars(ReproduceOptions()) | {"task": "copy"}
    task, out, options = calls[1]
    assert (task, out) == ("jsb", tmp_path)
    expected = ReproduceOptions(
        tmp_path, Path(), "paper", (4, 5), 6, 32, (5, 10), baselines=True, resume=True, jobs=3, only=("rnn", "tcn")
    )
    assert vars(options) == vars(expected) | {"task": "jsb"}


def test_an_option_that_does_not_fit_the_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["reproduce", "copy", "--data-dir", ".", "--out", str(tmp_path / "out")]) == 2
    assert "`--data-dir` has no meaning" in capsys.readouterr().err
    assert cli.main(["reproduce", "atis", "--out", str(tmp_path / "out")]) == 2
    assert "`--data-dir` must be the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
