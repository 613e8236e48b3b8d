"""The experiment on the cost of shorter windows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_stable import truncation_profile
from lightning_stable.diagnostics.truncation_profile import windows_needed
from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.experiments.penalty.penalty import run_penalty, tables
from lightning_stable.experiments.penalty.train import Setting, settings, windows


def test_all_settings_once() -> None:
    found = settings(PenaltyOptions(windows=(2, 4), weights=(1.0, 3.0), seeds=(1, 2)))
    assert len(found) == len(set(found)) == 2 * (4 * (2 + 4) + 2)
    assert [setting.method for setting in found[:10]] == ["none"] * 4 + ["projection"] * 4 + ["convolution"] * 2


def test_the_window_of_nine_in_ten() -> None:
    torch.manual_seed(0)
    core = nn.GRU(3, 4, batch_first=True)
    sequences = [torch.randn(length, 3) for length in (20, 25, 30, 40, 12, 18, 33, 22, 27, 31)]
    found = windows(core, sequences, 0.05)
    profiles = [truncation_profile(core, sequence, 40) for sequence in sequences]
    size = sum(p.output_norm * len(s) for p, s in zip(profiles, sequences, strict=True)) / sum(map(len, sequences))
    needed = sorted(int(windows_needed(p.sequence_error, 0.05 * size)) for p in profiles)
    assert found == {"half": needed[4], "most": needed[8], "all": needed[9], "sequences": 10}


def test_runs_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Setting] = []

    def train(setting: Setting, options: PenaltyOptions) -> dict[str, Any]:
        made.append(setting)
        measured = {"loss": 2.0 + 0.1 * (setting.weight or 0), "half": 3, "most": 10.0, "all": None}
        return {**vars(setting), **measured}

    monkeypatch.setattr("lightning_stable.experiments.penalty.penalty.train", train)
    options = PenaltyOptions(tmp_path, tasks=("text",), cells=("gru",), windows=(4,), weights=(1.0, 3.0), seeds=(1, 2))
    assert run_penalty(options) == 0
    assert len(made) == 10
    assert run_penalty(options) == 0  # all are there
    assert len(made) == 10
    assert (tmp_path / "penalty.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    table, beside = tables(rows, options)
    assert list(beside.columns[0].cells) == ["convolution"]
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns[""] == ["none", "penalty", "penalty", "projection"]
    assert columns["above"] == ["+0.0%", "+5.0%", "+15.0%", "+5.0%"]
    assert columns["all"] == ["> 128"] * 4


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    options = PenaltyOptions(
        tmp_path, tasks=("text",), cells=("lstm",), windows=(8,), weights=(1.0,), units=8, text_epochs=1, twin=8
    )
    assert run_penalty(options) == 0
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["none", "projection", "convolution", "penalty"]
    assert rows[1]["rate"] <= 0.99
    assert rows[2]["half"] == rows[2]["all"] == 1 + 2 * 2 * (2**3 - 1)  # three blocks of two convolutions
    assert [row["distance"] > 0 for row in rows if row["method"] != "convolution"] == [True] * 3
