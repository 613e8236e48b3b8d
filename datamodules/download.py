"""Downloads that are whole and checked, or leave nothing behind."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

BLOCK = 1 << 16


class DownloadError(RuntimeError):
    """A file could not be downloaded, or was not what it should be."""


def cache_dir() -> Path:
    """Return the folder for downloads: ``lightning_stable`` in ``$XDG_CACHE_HOME``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_stable"


def fetch(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    *,
    check: Callable[[Path], object] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Download a file, unless it is there.

    The bytes go to a file of another name in the same folder, unique to this call, which is renamed only when it is
    complete and passes the checks. So a file of this name is whole, whatever interrupts a download and however many
    processes try at once; an incomplete file is removed.

    Args:
        url: Address of the file.
        path: Where to put it; missing folders are made.
        sha256: Its checksum, in hexadecimal digits.
        check: Called with the path of the loaded file, for data without a checksum; an exception refuses the file.
        timeout: Seconds of silence after which the server is given up.

    Returns:
        The path.

    Raises:
        DownloadError: If the server cannot be reached, does not have the file, stops in the middle, or sends something
            that fails a check. The message says which file to put where instead.
    """
    path = Path(path)
    if path.is_file():
        return path
    partial = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _stream(url, partial, path.name, timeout)
        if sha256 is not None and digest != sha256.lower():
            raise ValueError(f"its sha256 should be {sha256} but is {digest}")
        if check is not None:
            check(partial)
        os.replace(partial, path)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(
            f"{path.name} could not be downloaded from {url}. Download it yourself and put it at {path}. Got: {error}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _stream(url: str, path: Path, name: str, timeout: float) -> str:
    """Save what an address sends and return its sha256."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    request = Request(url, headers={"User-Agent": "lightning-stable"})
    with (
        urlopen(request, timeout=timeout) as response,
        path.open("xb") as file,
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        size = response.headers.get("Content-Length")
        expected = None if size is None else int(size)
        task = progress.add_task(name, total=expected)
        digest, received = hashlib.sha256(), 0
        while block := response.read(BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            progress.advance(task, len(block))
        if expected is not None and received != expected:
            raise ValueError(f"the connection ended after {received} of {expected} bytes")
        # On the disk before it is given its name, or a power failure could leave the name without the bytes.
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
