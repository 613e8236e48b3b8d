from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import PARTS, Item, Outcome, Part, main, markdown, run_apart, run_part
from benchmarks.timing import compared

ROW = compared("a", 1, "cpu", "b", [(2.0, 1.0)], 0.0, {"ours MiB": 3.0})


@pytest.mark.parametrize("name", [name for name in PARTS if name != "tests"])
def test_every_part_runs_on_a_cpu(name: str, tmp_path: Path) -> None:
    run_part(name, "cpu", True, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"]
    assert all(row["ours_seconds"] > 0 for row in found["rows"])
    if name == "steps":
        assert sum("ran eagerly" in note for note in found["notes"]) == 4


def test_what_was_found_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(device: str, small: bool) -> Iterator[Item]:
        yield ROW
        yield "a note"
        raise RuntimeError

    monkeypatch.setitem(PARTS, "tube", Part(run, 1))
    with pytest.raises(RuntimeError):
        run_part("tube", "cpu", True, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (len(found["rows"]), found["notes"]) == (1, ["a note"])


def test_steps_outside_the_set_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.Projector.project", lambda self, **kwargs: None)
    steps = PARTS["steps"].run("cpu", True)
    with pytest.raises(RuntimeError, match="Steps failed of: lstm, gru"):
        list(steps)


def test_a_part_that_takes_too_long_is_ended() -> None:
    outcome = run_apart("scan", "cpu", True, 0.05)
    assert outcome.status == "timed out"
    assert run_apart("scan", "cpu", True, -1).status == "not started"


def test_parts_do_not_depend_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"tube": "failed", "scan": "ok"}

    def run(name: str, device: str, small: bool, limit: float) -> Outcome:
        assert 0 < limit <= PARTS[name].limit
        return Outcome(name, ends[name], rows=[ROW.to_dict()], notes=["a note"], error="boom" * (name == "tube"))

    monkeypatch.setattr(gpu, "run_apart", run)
    files = ["--json", str(tmp_path / "gpu.json"), "--markdown", str(tmp_path / "gpu.md")]
    rehearsal = ["--device", "cpu", "--small", *files, "--parts"]
    assert main([*rehearsal, "tube", "scan"]) == 1
    assert [part["status"] for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]] == ["failed", "ok"]
    page = (tmp_path / "gpu.md").read_text()
    assert "boom" in page
    assert page.count("| a | 1 | b | 2e+03 | 1e+03 | 2 | 0 | 0.0e+00 | 3 |") == 2
    assert main([*rehearsal, "scan"]) == 0


def test_parts_fit_into_ten_minutes() -> None:
    assert sum(part.limit for part in PARTS.values()) <= gpu.BUDGET < 600


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "--device must be cpu" in capsys.readouterr().err


def test_tables_say_what_they_belong_to() -> None:
    page = markdown(gpu.environment("cpu", True), [Outcome("scan", "ok")])
    assert f"- torch: {torch.__version__}" in page
    assert "- sizes: small" in page


@pytest.mark.slow
def test_the_whole_rehearsal_ends_well(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "gpu.json"), "--markdown", str(tmp_path / "gpu.md")]
    assert main(["--device", "cpu", "--small", "--parts", "tests", "scan", *files]) == 0
    tests, scan = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "skipped" in tests["notes"][0] or "passed" in tests["notes"][0]
    assert scan["rows"]
