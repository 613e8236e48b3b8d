"""The two programs answer as the example says; writing them is slow."""

from __future__ import annotations

from pathlib import Path

import feed_forward_onnx as example
import numpy as np
import pytest
import torch

SMALL = ["--epochs", "1", "--hidden-size", "3", "--window", "3", "--rate", "0.7"]


def test_series_swing_in_their_range() -> None:
    series = example.swings(64, 200, torch.Generator().manual_seed(0))
    assert series.shape == (64, 200, 1)
    assert 1 < series.abs().max() <= example.RANGE
    correlation = (series[:, 12:] * series[:, :-12]).mean() / series.square().mean()
    assert correlation < -0.3  # half a period later


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        example.main(SMALL)
    assert "pip install 'lightning-stable[export]'" in capsys.readouterr().err


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 60))
    found = example.Found(values, values + 0.01, np.full((2, 60), 0.1), 0.0)
    assert example.save(example.draw(found, 5), tmp_path / "figure.png").stat().st_size > 20_000


@pytest.mark.slow
def test_bounds_hold_in_streams_and_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(example, "PAST", 20)
    example.main(["--out", str(tmp_path / "new"), *SMALL])
    printed = capsys.readouterr().out
    assert " differences, 0 are above their bound." in printed
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "whole.onnx", "stream.onnx", "feed-forward-onnx.png",
    }  # fmt: skip

    series = example.swings(3, 12, torch.Generator().manual_seed(1)).numpy()
    answers, bounds = example.streamed(tmp_path / "new" / "stream.onnx", series)
    whole, same = example.batched(tmp_path / "new" / "whole.onnx", series)
    assert answers.shape == (3, 12, 1)
    assert bounds.shape == same.shape == (3, 12)
    assert np.abs(answers - whole).max() < 1e-5
