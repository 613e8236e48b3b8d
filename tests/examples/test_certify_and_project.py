"""The example says what it measures."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "certify_and_project.py"


def test_it_certifies_projects_and_truncates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    names = runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert names["report"].rate <= 0.9
    assert [layer.guarantee for layer in names["report"].layers] == ["guaranteed"]
    assert names["measured"] <= names["certified"]
    assert names["error"] <= 1e-3
    assert re.search(r"A window of \d+ inputs is certified, one of \d+ is measured", printed)
