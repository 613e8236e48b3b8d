"""Every example says what it is and what its options mean, and runs nothing for that."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_help(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parsers: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, *given: parsers.append(self) or parse(self, *given)
    )
    monkeypatch.setattr(Trainer, "__init__", None)  # nothing is trained
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"python examples/{script.name}" in shown
    (parser,) = parsers
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, argparse.SUPPRESS):
            assert f"(default: {action.default})" in shown, action.dest
