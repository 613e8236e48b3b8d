from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_stable import __version__, cli
from lightning_stable.experiments import demo
from lightning_stable.models import CELLS


def test_version_and_help_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from lightning_stable.cli import build_parser; build_parser().format_help(); "
        "sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "0"], ["demo", "--epochs", "few"], ["nothing"], []])
def test_bad_arguments_end_with_status_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: lightning-stable" in capsys.readouterr().err


def test_every_cell_of_the_models_is_a_choice() -> None:
    assert sorted(cli.CELLS) == sorted(CELLS)


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
