import errno
import os
import random
import stat
import tempfile
import zipfile
from multiprocessing import get_context
from pathlib import Path

import pytest

from lightning_stable import files
from lightning_stable.files import check_folder, replacing, unpacked, write_text


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_gives_the_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = write_text(tmp_path / "new" / "file.txt", "text")
    finally:
        os.umask(before)
    assert path.read_text() == "text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert names(tmp_path) == ["new", "new/file.txt"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file", "old")

    def fail() -> None:
        with replacing(path) as written:
            written.write_text("half of the n")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    with replacing(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


def test_files_beside_it_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    with replacing(tmp_path / "a.onnx") as written:
        written.write_text("program")
        written.with_name("a.onnx.data").write_text("weights")
    assert order == ["a.onnx.data", "a.onnx"]
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("disk"), fsync(descriptor)))
    write_text(tmp_path / "file", "text")
    assert done == ["disk", "name", "disk"]


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target = write_text(tmp_path / "far" / "file", "old")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_only_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"folder or a device\. Got '.*{kind}'"):
        write_text(path, "text")
    assert names(tmp_path) == [kind]


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("", "new", "new/below"):
        check_folder(tmp_path / folder)
    for folder in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"through a file\. Got '.*file"):
            check_folder(tmp_path / folder)
        with pytest.raises(ValueError, match="through a file"):
            write_text(tmp_path / folder / "x", "text")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folders_that_take_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(number, os.strerror(number), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    if number == errno.ENOSPC:
        check_folder(tmp_path / "new")  # it may have room when the time comes
    else:
        with pytest.raises(ValueError, match="may be written to"):
            check_folder(tmp_path / "new")


def _killed(path: Path) -> None:
    with replacing(path) as written:
        written.write_text("half")
        os._exit(9)


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    process = get_context("fork").Process(target=_killed, args=(tmp_path / "file",))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    (left, half) = names(tmp_path)
    assert half == f"{left}/file"
    (tmp_path / ".other.part").mkdir()  # not ours
    write_text(tmp_path / "another", "text")
    assert names(tmp_path) == [".other.part", "another"]


def test_what_is_in_use_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "first") as first:
        first.write_text("1")
        write_text(tmp_path / "second", "2")
        assert first.read_text() == "1"
    assert names(tmp_path) == ["first", "second"]


def test_without_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    old, young = tmp_path / ".lightning-stable-a.part", tmp_path / ".lightning-stable-b.part"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    write_text(tmp_path / "file", "text")
    assert names(tmp_path) == [young.name, "file"]


def _write_often(path: Path, letter: str) -> None:
    for _ in range(50):
        write_text(path, letter * 1000)


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    """A reader sees one of the texts, whole, and no writer sweeps another's."""
    context, path = get_context("fork"), tmp_path / "file"
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen <= {letter * 1000 for letter in "abc"}
    assert names(tmp_path) == ["file"]


def packed(path: Path, content: bytes, *, said: int | None = None) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", content)
    archive = zipfile.ZipFile(path)
    if said is not None:
        archive.getinfo("member").file_size = said
    return archive


def test_a_member_within_its_size(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(3_000_000)
    with packed(tmp_path / "x.zip", content) as archive:
        assert unpacked(archive, "member", len(content)) == content
        with pytest.raises(KeyError):
            unpacked(archive, "nobody", 1)


def test_a_member_that_says_it_is_too_large_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with packed(tmp_path / "x.zip", bytes(10_000_000)) as archive:
        monkeypatch.setattr(archive, "open", None)
        with pytest.raises(ValueError, match=r"'member' must have at most 9999999 bytes\. Got one of 10000000"):
            unpacked(archive, "member", 9_999_999)


def test_a_member_that_says_it_is_smaller_than_it_is(tmp_path: Path) -> None:
    with packed(tmp_path / "x.zip", bytes(10_000_000), said=10) as archive, pytest.raises(zipfile.BadZipFile):
        unpacked(archive, "member", 1000)  # only as many bytes as were announced are unpacked; their checksum is wrong


def test_an_encrypted_member(tmp_path: Path) -> None:
    with packed(tmp_path / "x.zip", b"x") as archive:
        archive.getinfo("member").flag_bits |= 1
        with pytest.raises(ValueError, match=r"must not be encrypted\. Got an encrypted 'member'"):
            unpacked(archive, "member", 1000)
