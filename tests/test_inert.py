"""A file is read without running anything in it: every opcode that calls, fills or changes something is tried."""

from __future__ import annotations

import argparse
import enum
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_stable import inert
from lightning_stable.inert import Unread, load_inert, unread_in
from tests.helpers import equal

# What Python does when code runs that a file chose: none of it may happen while a file is read.
_FORBIDDEN = ("import", "exec", "compile", "pickle.find_class", "os.", "subprocess.", "shutil.", "socket.", "ctypes.")
_watched: list[str] | None = None
"".encode("cp437")  # zipfile imports this encoding when it first reads a name


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event.startswith(_FORBIDDEN):
        _watched.append(f"{event} {args}")


sys.addaudithook(_audit)


@contextmanager
def nothing_runs() -> Iterator[None]:
    global _watched
    _watched = []
    try:
        yield
        assert not _watched
    finally:
        _watched = None


class Colour(enum.Enum):
    RED = 1


class Many(list[int]):
    """Filled by APPENDS."""


class Table(dict[str, int]):
    """Filled by SETITEMS."""


class Runs:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def replaced(path: Path, pickled: bytes) -> Path:
    """Replace the pickle of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_and_plain_values_are_those_of_torch_load(protocol: int, tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "state": nn.GRU(2, 3).state_dict(),
        "parts": [shared.t(), shared[1:, ::2], torch.tensor(3), torch.empty(0, 2), nn.Parameter(torch.ones(2))],
        "dtypes": [torch.ones(3, dtype=dtype) for dtype in (torch.bfloat16, torch.bool, torch.int8, torch.complex64)],
        "plain": (1, 2.5, None, True, "word", b"\x00\xff", {1, 2}, torch.Size([2]), torch.float16, 2**70),
        "ordered": OrderedDict(a=1),
        "device": torch.device("cpu"),
    }
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    with nothing_runs():
        found = load_inert(tmp_path / "x.pt")
    assert unread_in(found) == []
    assert equal(found["state"], content["state"])
    for name in ("parts", "dtypes"):
        for one, other in zip(found[name], content[name], strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    assert found["parts"][0].data_ptr() == shared.data_ptr() or found["parts"][0].stride() == (1, 4)
    for name in ("plain", "ordered", "device"):
        assert found[name] == content[name]


def test_objects_of_any_class_leave_a_stand_in(tmp_path: Path) -> None:
    objects = [Colour.RED, Many([1, 2]), Table(a=1), partial(print, 1), argparse.Namespace(a=1), nn.Linear(2, 2), print]
    path = save({"objects": [*objects, {Path("x")}], "kept": 1, "class": Colour}, tmp_path / "x.pt")
    with nothing_runs():
        found = load_inert(path)
    assert found["kept"] == 1
    assert all(isinstance(one, Unread) or issubclass(one, Unread) for one in found["objects"][:-1])
    assert {f"{__name__}.Colour", f"{__name__}.Many", f"{__name__}.Table", "argparse.Namespace"} <= set(
        unread_in(found)
    )
    assert any(path.startswith("pathlib") for path in unread_in(found["objects"][-1:]))


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, __import__, getattr, setattr, open])
@pytest.mark.parametrize("protocol", [2, 4])
def test_no_function_of_a_file_is_called(function: Any, protocol: int, tmp_path: Path) -> None:
    torch.save({"x": Runs(function, str(tmp_path / "made"), "w")}, tmp_path / "x.pt", pickle_protocol=protocol)
    with nothing_runs():
        found = load_inert(tmp_path / "x.pt")
    assert isinstance(found["x"], Unread)
    assert sorted(os.listdir(tmp_path)) == ["x.pt"]


_MKDIR = b"cos\nmkdir\n"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
_DEFAULTS = b"N}U\x0c__defaults__K\x01s\x86b"  # BUILD with the state (None, {"__defaults__": 1})


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02" + _MKDIR + b"U\x04made\x85R.",
        b"\x80\x02(" + b"U\x04madeios\nmkdir\n.",
        b"\x80\x02(" + _MKDIR + b"U\x04madeo.",
        b"\x80\x02" + _MKDIR + b"U\x04made\x85\x81.",
        b"\x80\x04" + _MKDIR + b"U\x04made\x85}\x92.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x04made\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x0eeval.__class__\x93\x8c\x011\x85R.",
        b"\x80\x04\x8c\x16lightning_stable.inert\x8c\x0a_FUNCTIONS\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"\x80\x02" + _TENSOR + _DEFAULTS + b".",
        b"\x80\x02ccollections\nOrderedDict\n" + _DEFAULTS + b".",
        b"\x80\x02ccollections\nOrderedDict\n)R" + b"}U\x05itemscos\nsystem\nsb.",
        b"\x80\x02ctorch\nfloat32\n}U\x01aK\x01sb.",
        b"\x80\x02U\x04made(cos\nmkdir\nK\x01tQ.",
        b"\x80\x02" + _TENSOR + b"(NK\x00K\x01K\x01tR.",
    ],
)
def test_no_opcode_reaches_anything(pickled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = replaced(save({}, tmp_path / "x.pt"), pickled)
    functions, tensor = dict(inert._FUNCTIONS), dict(vars(inert._tensor))
    with nothing_runs():
        try:
            found = load_inert(path)
        except Exception:  # of whatever kind: many of these are no pickles
            found = None
    if isinstance(found, OrderedDict):
        assert unread_in(list(vars(found).values())) == ["os.system"]
    assert sorted(os.listdir(tmp_path)) == ["x.pt"]
    assert functions == inert._FUNCTIONS
    assert tensor == vars(inert._tensor)
    assert inert._tensor.__defaults__ is None


_PIECES = [
    _MKDIR,
    _TENSOR,
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\nset\n",
    b"U\x04made",
    b"K\x05",
    b"N",
    b"}",
    b"]",
]
_CALLS = [
    b")",
    b"(",
    b"\x85",
    b"\x86",
    b"\x87",
    b"t",
    b"R",
    b"\x81",
    b"b",
    b"s",
    b"a",
    b"o",
    b"0",
    b"2",
    b"Q",
    b"u",
    b"e",
]


@given(st.lists(st.sampled_from(_PIECES + _CALLS), max_size=25))
def test_no_program_of_these_opcodes_runs_anything(
    tmp_path_factory: pytest.TempPathFactory, program: list[bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = replaced(save({}, folder / "program.pt"), b"\x80\x02" + b"".join(program) + b".")
    with nothing_runs(), suppress(Exception):
        load_inert(path)
    assert not Path("made").exists()


@pytest.mark.parametrize("size", [(100,), (2, 50), (-1,), (2**62, 2**62)])
def test_no_tensor_reaches_beyond_its_storage(size: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, OverflowError, ValueError)):
        inert._tensor(torch.zeros(5), 0, size, (1,) * len(size))
    with pytest.raises(RuntimeError):
        inert._tensor(torch.zeros(5), 4, (2,), (1,))


def test_the_byte_order_of_another_machine(tmp_path: Path) -> None:
    path = save({"x": torch.ones(2)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    other = b"big" if sys.byteorder == "little" else b"little"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, other if name.endswith("/byteorder") else content)
    with pytest.raises(pickle.UnpicklingError, match="byte order"):
        load_inert(path)
