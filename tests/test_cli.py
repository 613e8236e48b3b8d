from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from lightning_stable import __version__, cli
from lightning_stable.experiments.demo import demo
from lightning_stable.experiments.demo.options import CellName
from lightning_stable.models import CELLS


def test_help_shows_examples_and_waits_for_no_torch() -> None:
    """All commands are read by one interpreter, whose start takes most of the time."""
    code = """
import sys
from lightning_stable.cli import main
for words in ([], *([name] for name in "demo reproduce capacity certify profile export".split())):
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0
slow = {"torch", "lightning", "jsonargparse", "matplotlib", "rich"} & sys.modules.keys()
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo --out", "reproduce jsb", "capacity bits", "certify runs", "profile best", "export best"):
        assert f"examples:\n  lightning-stable {command}" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("demo --epochs 0", "argument --epochs: must be a positive integer. Got 0"),
        ("demo --epochs few", "argument --epochs: must be a positive integer. Got few"),
        ("demo --rate 1", "argument --rate: must be a number in (0, 1). Got 1"),
        ("reproduce copy --jobs 0", "argument --jobs: must be a positive integer. Got 0"),
        ("export x.ckpt --tolerance 0", "argument --tolerance: must be a number in (0, inf). Got 0"),
        ("profile x.ckpt --data x.pt --tolerance nan", "argument --tolerance: must be a number in (0, inf). Got nan"),
        ("nothing", "invalid choice: 'nothing'"),
        ("", "required: COMMAND"),
    ],
)
def test_bad_arguments_are_named_and_end_with_status_two(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    error = capsys.readouterr().err
    assert error.startswith("usage: lightning-stable")
    assert message in error


def test_every_cell_of_the_models_is_a_choice() -> None:
    assert sorted(get_args(CellName)) == sorted(CELLS)


def test_an_error_takes_one_line_unless_a_traceback_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise ValueError("`rate` must be a number in (0, 1). Got 2.")

    monkeypatch.setattr(demo, "run_demo", fail)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "lightning-stable: ValueError: `rate` must be a number in (0, 1). Got 2.\n"
    for arguments in (["--traceback", "demo"], ["demo", "--traceback"]):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.startswith("Traceback (most recent call last)")
