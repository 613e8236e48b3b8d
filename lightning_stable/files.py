"""Files that are whole or not there, and archives that are no larger than they say.

Whatever is written goes into a folder of a name of its own beside the target, reaches the disk, and takes the target's
name in one step: a reader sees the old file or the new one, and a full disk leaves the old one. A process that is
killed leaves its folder behind; the next one that writes beside it removes it. A lock that ends with its process says
which folders are in use.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".lightning-stable-", ".part"
# Seconds after which a folder is taken for abandoned where no lock can say so.
_FORGOTTEN = 86_400.0
_BLOCK = 1 << 20
# Errors that say that nobody, or not this user, writes there; a full disk may have room when the time comes.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; when the block ends it takes the name ``path``, and after an error nothing is left.

    What else the block writes into the same folder, such as the weights beside an ONNX file, comes along under its own
    name, before the file itself. Missing folders are made. The permissions are those that the umask gives.

    Raises:
        ValueError: If there is something else than a file at the path, or a file where a folder should be.
        OSError: If it cannot be written.
    """
    path = path.resolve()  # behind a link lies what is meant
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    folder, lock = _new_folder(path.parent)
    try:
        yield folder / path.name
        files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for file in files:
            _sync(file)
        for file in files:
            os.replace(file, path.parent / file.name)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str) -> Path:
    """Write a text file and return its path, see :func:`replacing`."""
    with replacing(path) as written:
        written.write_text(text, encoding="utf-8")
    return path


def check_file(path: Path) -> None:
    """Check that a file can be written, which need not exist; nothing is made.

    Raises:
        ValueError: If there is something else at its path, or its folder cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"The path of a file must not be that of a folder or a device. Got {str(path)!r}.")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Check that files can be written to a folder, which need not exist; nothing is left.

    Raises:
        ValueError: If there is something else at its path, or the folder it would be in may not be written to.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"The path of a folder must not lead through a file. Got {str(folder)!r}, and a file {there}.")
    try:
        # Permissions say nothing about a file system that is read-only or no real one, and nothing to the superuser.
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        if error.errno in _REFUSED:
            raise ValueError(f"The folder must be one that may be written to. Got {str(folder)!r}.") from error


def unpacked(archive: zipfile.ZipFile, member: str, largest: int) -> bytes:
    """Return a member of a zip archive if it is no larger than allowed.

    Raises:
        ValueError: If it is larger, by what the archive says or while it is unpacked, or encrypted.
        KeyError: If there is none of this name.
        zipfile.BadZipFile: If it is damaged.
    """
    entry = archive.getinfo(member)
    if entry.flag_bits & 1:
        raise ValueError(f"The archive must not be encrypted. Got an encrypted {member!r}.")
    if entry.file_size > largest:
        raise ValueError(f"{member!r} must have at most {largest} bytes. Got one of {entry.file_size}.")
    content = bytearray()
    with archive.open(entry) as file:
        while block := file.read(_BLOCK):
            content += block
            if len(content) > largest:
                raise ValueError(f"{member!r} must have at most {largest} bytes. Got more.")
    return bytes(content)


def _new_folder(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
        lock = _locked(folder, wait=True)
        if folder.exists():  # else another process swept it before it was locked
            return folder, lock
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, wait: bool = False) -> int | None:
    """Return the descriptor of a folder that this process has locked; None if it cannot."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has, or the file system knows no locks
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove what processes that are no more have left."""
    for folder in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            lock = _locked(folder)
            if lock is not None or time.time() - folder.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk, or a power failure could keep one without the other.

    Some systems cannot say so for folders.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():
            raise
