"""``lightning-stable export``: what it writes and prints, and one line for what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_stable import certify, cli, project_
from lightning_stable.export import read_metadata
from tests.checkpoint_files import CLASS, Gated, as_cli, save
from tests.commands.test_certify import error_of, language_model


def test_a_certified_window_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model(0.6)
    path = as_cli(model, tmp_path)
    window = certify(model.eval()).required_window(0.1)
    assert cli.main(["export", str(path), "--tolerance", "0.1", "--format", "torch-export"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    metadata = read_metadata(tmp_path / "model.pt2")
    assert (metadata.window, metadata.guarantee) == (window, "derived")
    assert "(derived)" in captured.out
    assert "derived: for all inputs the traced model lets through" in " ".join(captured.out.split())
    assert f"{window} inputs" in captured.out
    assert "certified error of core" in captured.out
    assert "input: int64 (batch, time)" in captured.out
    assert captured.out.endswith("model.pt2\n")


@pytest.mark.parametrize("rate", [0.9, None])
def test_a_bound_above_the_outputs_is_none(
    rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_cli(language_model(rate), tmp_path)
    assert cli.main(["export", str(path), "--window", "1", "--format", "torch-export"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"certified error of core *│ none", out)
    assert "No useful worst-case bound is certified for a window of 1 input:" in out or rate is None
    assert ("The output `bound` says" in out) == (rate is not None)
    assert "No useful bound is certified. The rate of 'core.l0'" in out or rate is not None


def test_a_model_from_elsewhere(tmp_path: Path) -> None:
    path, example = save(Gated(4), tmp_path), tmp_path / "inputs.pt"
    torch.save(torch.randn(2, 5, 3), example)
    out = tmp_path / "out.pt2"
    given = ["export", str(path), "--class-path", CLASS, "--window", "2", "--out", str(out), "--streaming"]
    assert cli.main([*given, "--example", str(example), "--input-bound", "0.5"]) == 0
    metadata = read_metadata(out)
    assert (metadata.model, metadata.form, metadata.input_bound) == ("Gated", "streaming", {"core.l0": "|x| <= 0.5"})


def test_errors_take_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Gated(4), tmp_path)
    given = ("export", path, "--class-path", CLASS)
    torch.save([1.0], tmp_path / "list.pt")
    before = set(tmp_path.iterdir())
    assert "`--example` must be the file of one tensor" in error_of(
        capsys, *given, "--window", 2, "--example", tmp_path / "list.pt"
    )
    assert "needs a certified window" in error_of(capsys, *given, "--tolerance", 0.1)
    assert "`window` must be given" in error_of(capsys, *given)
    assert "`example` must be a batch" in error_of(capsys, *given, "--window", 2)
    assert "must end in '.onnx'" in error_of(capsys, *given, "--window", 2, "--out", tmp_path / "x.bin")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["runs", "runs.onnx", "runs.pt2"])
def test_a_folder_is_refused_before_the_checkpoint_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    assert "`--out` must be that of a file." in error_of(capsys, "export", "no.ckpt", "--out", f"{tmp_path / name}/")
    assert "no.ckpt" in error_of(capsys, "export", "no.ckpt")


def test_one_way_to_choose_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "x.ckpt", "--window", "2", "--tolerance", "1"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_else_reaches_the_screen(streaming: bool, tmp_path: Path) -> None:
    model = language_model(0.9, num_layers=2)
    project_(model, 0.9)
    given = ["export", str(as_cli(model, tmp_path)), "--window", "3", *(["--streaming"] if streaming else [])]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_stable", *given], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.lstrip().startswith("LanguageModel as a feed-forward program")
    assert read_metadata(tmp_path / f"model{'.streaming' if streaming else ''}.onnx").window == 3
