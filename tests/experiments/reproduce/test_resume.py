"""Runs that are stopped, and how they go on."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable.experiments.reproduce import train as training
from lightning_stable.experiments.reproduce.options import ReproduceOptions
from lightning_stable.experiments.reproduce.resume import last_checkpoint
from lightning_stable.experiments.reproduce.task import Run, Task, read_task
from lightning_stable.experiments.reproduce.train import finished, make_data, prepare, train
from lightning_stable.experiments.results import Row
from tests.experiments.reproduce.tiny import DELICATE, WORDS
from tests.helpers import equal

BATCHES = 4  # of an epoch


def ignore(*_: Any) -> None:
    """A report that nobody reads."""


def task_and_run(name: str) -> tuple[Task, Run]:
    task = read_task(DELICATE, "delicate")
    return task, next(run for run in task.runs(ReproduceOptions()) if run.name == name)


def fit(name: str, folder: Path, *, resume: bool = False) -> Row:
    task, run = task_and_run(name)
    return train(task, run, folder, prepare(task, run, folder, make_data(run.config), resume=resume), ignore)


def killed(name: str, folder: Path, after: int) -> None:
    """Train in a process that is gone at once after a number of batches."""
    task, run = task_and_run(name)
    config = prepare(task, run, folder, make_data(run.config))

    def report(done: int, total: int, text: str) -> None:
        if done >= after:
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=train, args=(task, run, folder, config, report))
    process.start()
    process.join()
    assert process.exitcode == 9


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_BETWEEN_REPORTS", 0.0)


@pytest.mark.parametrize("name", ["lstm-stable", "rnn"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole" / "runs" / name, tmp_path / "parts" / "runs" / name
    expected = fit(name, whole)
    killed(name, parts, 2 * BATCHES + 2)  # in the third epoch
    assert last_checkpoint(parts) is not None
    steps = torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 2 * BATCHES
    row = fit(name, parts, resume=True)
    assert row | {"seconds": 0} == expected | {"seconds": 0}
    assert row["epochs"] == 5
    saved, again = (torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (whole, parts))
    assert equal(saved["state_dict"], again["state_dict"])
    assert equal(saved["optimizer_states"][0]["state"][0], again["optimizer_states"][0]["state"][0])
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["best.ckpt"]


def test_an_epoch_that_reads_a_part_of_a_text_begins_at_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = list("abcbacdeadcb")
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" ".join(words[i * i % 12] for i in range(400)))
    text = WORDS.replace("init_args: {batch", f"init_args: {{data_dir: {tmp_path}, batch", 1)
    monkeypatch.setattr("tests.experiments.reproduce.test_resume.DELICATE", text)
    whole, parts = (tmp_path / name / "runs" / "gru" for name in ("whole", "parts"))
    expected = fit("gru", whole)
    killed("gru", parts, 2 * BATCHES + 2)
    assert fit("gru", parts, resume=True) | {"seconds": 0} == expected | {"seconds": 0}


def test_what_a_part_of_the_first_epoch_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "rnn"
    killed("rnn", folder, BATCHES)  # validated once, and no epoch was completed
    old = next((tmp_path / "tensorboard" / "rnn").glob("events.*"))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "best.ckpt").write_text("of the first epoch")
    assert last_checkpoint(folder) is None
    fit("rnn", folder, resume=True)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["best.ckpt"]
    assert not old.exists()


def test_a_run_begins_with_an_empty_folder(tmp_path: Path) -> None:
    folder, (task, run) = tmp_path / "runs" / "rnn", task_and_run("rnn")
    killed("rnn", folder, 2 * BATCHES + 2)
    data = make_data(run.config)
    prepare(task, run, folder, data, resume=True)
    assert last_checkpoint(folder) is not None
    prepare(task, run, folder, data)
    assert last_checkpoint(folder) is None
    assert not (folder / "checkpoints").exists()
    # And so does one with another configuration.
    killed("rnn", folder, 2 * BATCHES + 2)
    other = next(run for run in task.runs(ReproduceOptions(epochs=3)) if run.name == "rnn")
    prepare(task, other, folder, data, resume=True)
    assert last_checkpoint(folder) is None
    assert finished(folder) is None
