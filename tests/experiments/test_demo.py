from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from lightning_stable import cli
from lightning_stable.experiments.demo import figures
from lightning_stable.experiments.demo.demo import _unused
from lightning_stable.experiments.demo.runs import Run
from lightning_stable.models import LanguageModel


def test_a_short_demo_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--epochs", "1", "--limit-batches", "2", "--hidden-size", "12", "--window", "3", "--distance-steps", "4"]
    status = cli.main(["--traceback", "demo", "--out", str(tmp_path), *small])
    printed = capsys.readouterr().out
    assert status == 0
    for expected in ("word frequencies", "unconstrained", "stable", "derived", "1 epoch,", "unconstrained: No useful"):
        assert expected in printed
    for expected in ("Twins that see 3 inputs", "perplexity of the twin", "error of 0.001, certified", "times nearer"):
        assert expected in printed
    for figure in ("learning_curves", "weight_distance"):
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    for run in ("unconstrained", "stable", "unconstrained-windows", "stable-windows"):
        assert list((tmp_path / run).glob("events.out.tfevents.*"))
    *ours, board = printed.partition("What to try next:\n")[2].strip().splitlines()
    for line, command in zip(ours, ("certify", "profile", "export"), strict=True):
        words = shlex.split(line)
        assert cli.main(["--traceback", *words[words.index(command) :]]) == 0
    assert board.endswith(f"--logdir {tmp_path}")
    # The stable checkpoint loads into a plain model and carries its certificate.
    checkpoint = torch.load(tmp_path / "stable" / "checkpoints" / "best.ckpt", weights_only=True)
    model = LanguageModel(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if key.startswith("StabilityProjection")]
    assert state["report"]["rate"] <= 0.99


@pytest.mark.parametrize("free", [[1e4, 3e10], [1e4, float("inf")]])
def test_the_rates_of_both_models_are_drawn(free: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stable one's alone would be a flat line on its target."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    runs = [Run("unconstrained", [90.0, 70.0], free), Run("stable", [80.0, 60.0], [0.99, 0.99])]
    figures.plot_runs(runs, 200.0, 0.99, tmp_path / "curves.png")
    _, rates = drawn[0].axes
    assert rates.get_yscale() == "log"
    first, second = rates.get_lines()[:2]
    assert (first.get_ydata()[0], second.get_ydata()[0]) == (free[0], 0.99)
    (note,) = [text.get_text() for text in rates.texts if text.get_text().startswith("unconstrained")]
    assert note == ("unconstrained:\n3e10" if free[1] < float("inf") else "unconstrained: no finite rate")


def test_an_earlier_demo_is_kept(tmp_path: Path) -> None:
    assert _unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "stable").mkdir(parents=True)
    (tmp_path / "demo-2" / "stable").mkdir(parents=True)
    assert _unused(tmp_path / "demo") == tmp_path / "demo-3"


def test_the_stable_model_alone_starts_with_its_time_constants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["demo", "--out", str(tmp_path), "--longest-time-constant", "6"]
    small = ["--epochs", "1", "--limit-batches", "2", "--hidden-size", "12", "--window", "3", "--distance-steps", "4"]
    assert cli.main(["--traceback", *asked, *small]) == 0
    found = [
        torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
        for name in ("unconstrained", "stable")
    ]
    assert [parameters["longest_time_constant"] for parameters in found] == [None, 6.0]
    capsys.readouterr()
    assert cli.main([*asked, "--cell", "rnn"]) == 2
    error = capsys.readouterr()
    assert "`longest_time_constant` must be None for a `cell`" in error.err
    assert "Training" not in error.out
