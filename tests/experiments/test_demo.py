from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_stable import cli
from lightning_stable.experiments.demo.demo import _unused
from lightning_stable.models import LanguageModel


def test_a_short_demo_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--epochs", "1", "--limit-batches", "2", "--hidden-size", "12", "--window", "3", "--distance-steps", "4"]
    status = cli.main(["--traceback", "demo", "--out", str(tmp_path), *small])
    printed = capsys.readouterr().out
    assert status == 0
    for expected in ("word frequencies", "unconstrained", "stable", "derived", f"tensorboard --logdir {tmp_path}"):
        assert expected in printed
    for expected in ("Twins that see 3 inputs", "perplexity of the twin", "error of 0.001, certified", "times nearer"):
        assert expected in printed
    for figure in ("learning_curves", "weight_distance"):
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    for run in ("unconstrained", "stable", "unconstrained-windows", "stable-windows"):
        assert list((tmp_path / run).glob("events.out.tfevents.*"))
    # The stable checkpoint loads into a plain model and carries its certificate.
    checkpoint = torch.load(tmp_path / "stable" / "checkpoints" / "best.ckpt", weights_only=True)
    model = LanguageModel(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if key.startswith("StabilityProjection")]
    assert state["report"]["rate"] <= 0.99


def test_an_earlier_demo_is_kept(tmp_path: Path) -> None:
    assert _unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "stable").mkdir(parents=True)
    (tmp_path / "demo-2" / "stable").mkdir(parents=True)
    assert _unused(tmp_path / "demo") == tmp_path / "demo-3"
