"""Every bad option of every command is told so: exit status 2, the option and the value named, nothing written."""

import argparse
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable.cli import build_parser, main
from lightning_stable.experiments.cost import __main__ as cost
from lightning_stable.experiments.forgetting import __main__ as forgetting
from lightning_stable.experiments.penalty import __main__ as penalty
from lightning_stable.models import MusicModel
from tests.bad_values import HANG, Hang, no_longer_than
from tests.checkpoint_files import as_cli

HUGE = "1" + "0" * 400
COUNT = ("0", "-1", "1.5", "three", "nan", "", HUGE, "1e3", "0x10", "None")
SHARE = ("0", "1", "-0.5", "nan", "inf", "half", "", HUGE, "0.5.5")
NAME = ("neither", "", "3")
SEED = ("-1", "1.5", "one", "", HUGE, str(2**63), "nan")
SIZE = ("0", "-1", "nan", "inf", "small", "", HUGE)
LONG = "a" * 300
# Nobody makes a file in /proc, whatever the permissions say.
FOLDER = ("file", "file/below", "fifo", "", LONG, *(("/proc/below",) if Path("/proc").is_dir() else ()))
MISSING = ("nowhere", LONG, "folder", "fifo", "empty", "garbage", "", "bomb.zip")

# Bad words of each option, by its name or `command name`.
WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        [
            "epochs",
            "hidden_size",
            "window",
            "windows",
            "distance_steps",
            "limit_batches",
            "jobs",
            "trials",
            "steps",
            "batches",
            "max_window",
            "windows",
            "units",
            "twin",
            "lengths",
            "text_epochs",
            "music_epochs",
        ],
        COUNT,
    ),
    **dict.fromkeys(["rate", "gate_bound", "coverage", "confidence"], SHARE),
    **dict.fromkeys(
        ["cell", "budget", "format", "task", "experiment", "cells", "only", "tasks", "music", "studies"],
        ("neither", "", "3"),
    ),
    "bound": ("neither", "", "3"),
    "rates": ("0", "1.5", "nan", "inf", "half", "", HUGE),
    "text_dropout": ("1", "-0.5", "nan", "half", "", HUGE),
    "longest_time_constant": ("1", "-5", "nan", "inf", "long", "", HUGE),
    "averaging": ("1", "-0.5", "nan", "half", "", HUGE),
    **dict.fromkeys(["seed", "seeds"], SEED),
    **dict.fromkeys(["tolerance", "weights"], SIZE),
    "penalty tolerance": SHARE,
    "out": FOLDER,
    "export out": (
        LONG + ".onnx",
        *(("/proc/model.onnx",) if Path("/proc").is_dir() else ()),
        *("model.txt", "folder", "nowhere/model.onnx", "file/model.onnx", "fifo", "", "model"),
    ),
    "data_dir": ("nowhere", "file", "fifo", ""),
    "checkpoint": MISSING,
    "data": (
        *MISSING,
        "empty.yaml",
        "broken.yaml",
        "other.yaml",
        "list.yaml",
        "nowhere.yaml",
        "class.yaml",
        "deep.yaml",
    ),
    "example": MISSING,
    "input_bound": (
        *(
            "wide",
            "",
            "-1",
            "nan",
            "inf",
            HUGE,
            "active",
            "active:",
            "active:0",
            "active:1.5",
            "active:-3",
            "active:99",
        ),
        *(
            "l2:-1",
            "l2:nan",
            "l2:",
            "l2:1:2",
            "box:1",
            "box:2:1",
            "box:0:inf",
            "box:a:b",
            ":",
            "ball:3",
            "active:" + HUGE,
        ),
    ),
    "class_path": (
        "",
        "nobody",
        "nobody.Model",
        "torch.nn.Linear",
        "os.path",
        "lightning_stable.models.Nobody",
        ".x",
        "x.",
    ),
    "arguments": (
        "x",
        "=",
        "=3",
        "3=x",
        "nobody=3",
        "hidden_size=abc",
        "hidden_size=-1",
        "hidden_size=1e400",
        "keys=[]",
    ),
    "storage": ("nowhere", "", "nosql://x", "sqlite:///nowhere/below/search.db"),
}
FLAGS = {"help", "traceback", "version", "json", "citation", "trust", "streaming", "baselines", "resume"}
# What a command needs beside the option; words that belong to it come first.
NEEDED = {
    "demo": [],
    "reproduce": ["copy"],
    "capacity": ["bits"],
    "certify": ["good.ckpt"],
    "profile": ["good.ckpt", "--data", "inputs.pt"],
    "export": ["good.ckpt", "--window", "2"],
    "penalty": [],
    "cost": [],
    "forgetting": [],
}
# What has a command line of its own.
OTHERS = {"penalty": penalty, "cost": cost, "forgetting": forgetting}


def options() -> Iterator[tuple[str, argparse.Action]]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parsers = {**commands.choices, **{name: other.build_parser() for name, other in OTHERS.items()}}
    for command in NEEDED:
        for action in parsers[command]._actions:
            if action.dest not in FLAGS:
                yield command, action


CASES = [
    (command, action, word)
    for command, action in options()
    for word in WORDS.get(f"{command} {action.dest}", WORDS.get(action.dest, ()))
]
IDS = [f"{command}-{action.dest}-{word[:20]}" for command, action, word in CASES]


def test_every_option_has_bad_words() -> None:
    assert {action.dest for _, action in options()} <= WORDS.keys()
    assert len(CASES) >= 250


def words_of(command: str, action: argparse.Action, word: str) -> list[str]:
    needed = list(NEEDED[command])
    if not action.option_strings:
        return [command, *[word if given in ("copy", "bits", "good.ckpt") else given for given in needed]]
    (flag, *_) = action.option_strings
    if flag in needed:
        at = needed.index(flag)
        del needed[at : at + 2]
    if flag == "--tolerance" and "--window" in needed:
        needed = needed[:1]
    if (command, flag) == ("reproduce", "--data-dir"):
        needed = ["jsb"]
    if (command, flag) == ("capacity", "--data-dir"):
        needed = ["trainability"]
    # `--x=-1` is how a value that begins like an option is written.
    return [command, *needed, f"{flag}={word}"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_cli(MusicModel(3, cell="lstm", hidden_size=4, dropout=0.0), tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("file").write_text("x")
    Path("empty").touch()
    Path("garbage").write_bytes(bytes(range(256)) * 9)
    Path("folder").mkdir()
    os.mkfifo("fifo")
    for name, text in {
        "empty.yaml": "",
        "broken.yaml": "data: [",
        "other.yaml": "model: {}",
        "list.yaml": "- data",
        "class.yaml": "data: {class_path: nobody.Data}",
        "deep.yaml": "data: " + "[" * 3000,
    }.items():
        Path(name).write_text(text)
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    shutil.copy(checkpoint, "good.ckpt")
    torch.save(torch.zeros(2, 5, 3), "inputs.pt")
    return tmp_path


def answer(words: list[str], action: argparse.Action, word: str, capsys: Any) -> str | None:
    """Return what is wrong with the answer to a command line; None if it says all it should."""
    before = sorted(Path().rglob("*"))
    try:
        with no_longer_than(HANG):
            status: Any = OTHERS[words[0]].main(words[1:]) if words[0] in OTHERS else main(words)
    except SystemExit as left:
        status = left.code
    except Hang:
        return "hangs"
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1:] or [""]
    names = {*action.option_strings, action.dest, f"`{action.dest}`", str(action.metavar)}
    if status != 2:
        return f"status {status}: {said.out[-200:]} {last[0][:200]}"
    if sorted(Path().rglob("*")) != before:
        return f"wrote {sorted(set(Path().rglob('*')) - set(before))}"
    if not any(name in last[0] for name in names):
        return f"names no option: {last[0][:200]}"
    if "Got" not in last[0] and "invalid choice" not in last[0]:
        return f"names no value: {last[0][:200]}"
    return None if len(last[0]) < 1000 else f"too long: {len(last[0])}"


@pytest.mark.parametrize(("command", "action", "word"), CASES[::6], ids=IDS[::6])
def test_a_bad_option(here: Path, capsys: Any, command: str, action: argparse.Action, word: str) -> None:
    assert answer(words_of(command, action, word), action, word, capsys) is None


@pytest.mark.slow
@pytest.mark.parametrize(("command", "action", "word"), CASES, ids=IDS)
def test_every_bad_option(here: Path, capsys: Any, command: str, action: argparse.Action, word: str) -> None:
    assert answer(words_of(command, action, word), action, word, capsys) is None
