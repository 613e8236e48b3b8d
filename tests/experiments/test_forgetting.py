"""The experiment on how long a stable network holds a bit."""

import json
from pathlib import Path

import pytest
import torch

from lightning_stable.experiments.forgetting.forgetting import BitDataModule, run_forgetting, table, train
from lightning_stable.experiments.forgetting.options import ForgettingOptions


def test_what_is_to_be_known_after_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = BitDataModule("hold", 3).draw(50, generator)
    assert inputs.shape == targets.shape == (50, 4, 1)
    assert not inputs[:, 1:].any()
    assert torch.equal(targets, (inputs[:, :1] > 0).float().expand_as(targets))
    inputs, targets = BitDataModule("parity", 3).draw(50, generator)
    assert torch.equal(targets[:, -1], ((inputs > 0).sum(1) % 2).float())
    assert torch.equal(targets[:, 0], (inputs[:, 0] > 0).float())


def test_longer_sequences_are_not_tried_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, int, int]] = []

    def fake(task: str, cell: str, rate: float, length: int, seed: int, options: ForgettingOptions) -> float:
        made.append((rate, length, seed))
        return 1.0 if length < 10 * rate and seed == 2 else 0.5

    monkeypatch.setattr("lightning_stable.experiments.forgetting.forgetting.train", fake)
    options = ForgettingOptions(
        tmp_path, tasks=("hold",), cells=("gru",), rates=(0.5, 1.0), lengths=(4, 8, 16, 32), seeds=(1, 2)
    )
    assert run_forgetting(options) == 0
    assert made == [
        *((0.5, 4, 1), (0.5, 4, 2), (0.5, 8, 1), (0.5, 8, 2)),
        *((1.0, 4, 1), (1.0, 4, 2), (1.0, 8, 1), (1.0, 8, 2), (1.0, 16, 1), (1.0, 16, 2)),
    ]
    assert run_forgetting(options) == 0  # all are there
    assert len(made) == 10
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [list(column.cells) for column in table(rows, options).columns] == [["hold, gru"], ["4"], ["8"]]


@pytest.mark.slow
def test_a_bit_is_held_for_a_few_steps_and_not_for_ever() -> None:
    options = ForgettingOptions(units=8, steps=400)
    assert train("hold", "lstm", 0.9, 5, 1, options) == 1.0
    assert train("hold", "rnn", 0.5, 100, 1, options) < 0.95
