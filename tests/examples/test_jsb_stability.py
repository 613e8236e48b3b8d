from __future__ import annotations

import json
import sys
from pathlib import Path

import jsb_stability
import numpy as np
import pytest


@pytest.fixture
def rolls(tmp_path: Path) -> Path:
    """Small piano rolls in the original's format: at most 3 keys sound at once."""
    scipy_io = pytest.importorskip("scipy.io")
    generator, splits = np.random.default_rng(0), {}
    for name, count in (("traindata", 6), ("validdata", 2), ("testdata", 2)):
        cells = np.empty((1, count), dtype=object)
        for index in range(count):
            roll = np.zeros((int(generator.integers(5, 12)), 88), dtype=np.uint8)
            for frame in roll:
                frame[generator.choice(88, 3, replace=False)] = 1
            cells[0, index] = roll
        splits[name] = cells
    scipy_io.savemat(tmp_path / "JSB_Chorales.mat", splits)
    return tmp_path


def test_stable_rows_are_guaranteed_for_the_data(
    rolls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = rolls / "rows.json"
    words = ["--data-dir", str(rolls), "--epochs", "2", "--hidden-size", "10", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["jsb_stability.py", *words])
    jsb_stability.main()
    assert "at most 3 of 88 keys" in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert [(row["cell"], row["stable"]) for row in rows] == [
        ("lstm", False), ("lstm", True), ("gru", False), ("gru", True),
    ]  # fmt: skip
    assert all(row["rate"] <= 0.99 and row["guarantee"] == "guaranteed" for row in rows if row["stable"])


def test_missing_data_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jsb_stability.py", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--data-dir must hold JSB_Chorales\.mat"):
        jsb_stability.main()
