"""``lightning-stable fit`` and its siblings: LightningCLI, with help that helps and errors of one line."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_stable import cli
from lightning_stable.commands.lightning import reason

EXAMPLE = Path(__file__).parents[2] / "examples" / "fit.yaml"
QUICK = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
QUICK += [f"--trainer.limit_{stage}_batches=1" for stage in ("train", "val")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_example_fits_and_keeps_a_certified_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--config", str(EXAMPLE), *QUICK]) == 0
    (checkpoint,) = tmp_path.rglob("epoch*.ckpt")
    assert cli.main(["certify", str(checkpoint)]) == 0
    assert "Stable: every step contracts" in capsys.readouterr().out
    (config,) = tmp_path.rglob("resolved_config.yaml")
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], r"ValueError: .*File does not exist: '.*none\.yaml'$"),
        (["--model", "nope.Nope"], r"ValueError: .*class_path 'nope\.Nope': No module named 'nope'$"),
        (["--config", str(EXAMPLE), "--trainer.max_epochs", "x"], r'ValueError: .*"trainer\.max_epochs".* Got x\.$'),
        (["--config", str(EXAMPLE), "--seed_everything", "x"], r'ValueError: .*"seed_everything".* Got x\.$'),
        (["--config", "list.yaml"], r"ValueError: `--config` must be a YAML file of arguments\. Got: .*- a$"),
        (["--config", "broken.yaml"], r"ValueError: `--config` must be a YAML file of arguments\. Got: .*line 2"),
        (["--nope", "1"], r"ValueError: unrecognized arguments: --nope 1$"),
        (["--config", str(EXAMPLE), "--model.cell", "nope"], r"ValueError: `cell` must be one of .* Got 'nope'\.$"),
        # From inside the training.
        (["--config", str(EXAMPLE), *QUICK, "--model.vocab_size", "5"], r"\w+(Exception|Error): .+"),
        (["--config", str(EXAMPLE), *QUICK, "--ckpt_path", "none.ckpt"], r"(FileNotFound|Value)Error: .*none\.ckpt"),
    ],
)
def test_an_error_takes_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.yaml").write_text("- a")
    Path("broken.yaml").write_text("a: [")
    assert cli.main(["fit", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-stable: ")]
    assert re.match(f"lightning-stable: {message}", line), line


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_traceback_is_shown_if_wanted(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--model", "nope.Nope"]
    arguments.insert(place, "--traceback")
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("No module named 'nope'\n")


def test_help_begins_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["validate", "--help"])
    usage, _, text = capsys.readouterr().out.partition("\n\n")
    assert usage == "usage: lightning-stable validate --config FILE [--config FILE ...] [--KEY VALUE ...]"
    assert "\n  lightning-stable validate --config config.yaml --ckpt_path best.ckpt\n" in text


def test_reason_leaves_other_messages_alone() -> None:
    assert reason("Errors happen.\n  - twice\n\nGot 2.") == "Errors happen. twice Got 2."
