"""Downloads that are whole and checked, or leave nothing behind, and that end."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from lightning_stable import checks
from lightning_stable.files import replacing

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
    max_seconds: float = 3600.0,
    max_bytes: int = 1 << 30,
) -> Path:
    """Download a file, unless it is there.

    The bytes go into a folder of a name of its own beside the file, which gets its name only when it is complete and
    passes the checks. So a file of this name is whole, whatever interrupts a download and however many processes try at
    once; an incomplete file is removed, that of a killed process by the next download.

    Args:
        url: Address of the file.
        path: Where to put it; missing folders are made.
        sha256: Its checksum, in hexadecimal digits.
        check: Called with the path of the loaded file, for data without a checksum; an exception refuses the file.
        timeout: Seconds of silence after which the server is given up.
        max_seconds: Seconds after which the download is given up, however many bytes still trickle in.
        max_bytes: Size beyond which the file is refused, whether the server announces it or not.

    Returns:
        The path.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
        DownloadError: If the server cannot be reached, does not have the file, stops in the middle, sends for too long
            or too much, or sends something that fails a check. The message says which file to put where instead.
    """
    url, path = checks.text("url", url), checks.path("path", path)
    sha256 = None if sha256 is None else checks.text("sha256", sha256)
    check = None if check is None else checks.function("check", check)
    timeout = checks.number("timeout", timeout, "(0, 1e6]")
    max_seconds = checks.number("max_seconds", max_seconds, "(0, 1e6]")
    max_bytes = checks.integer("max_bytes", max_bytes)
    if path.is_file():
        return path
    try:
        with replacing(path) as partial:
            digest = _stream(url, partial, timeout, max_seconds, max_bytes)
            if sha256 is not None and digest != sha256.lower():
                raise ValueError(f"its sha256 should be {sha256} but is {digest}")
            if check is not None:
                check(partial)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(
            f"{path.name} could not be downloaded from {url}. Download it yourself and put it at {path}. Got: {error}."
        ) from error
    return path


def _stream(url: str, path: Path, timeout: float, max_seconds: float, max_bytes: int) -> str:
    """Save what an address sends and return its sha256."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    end = time.monotonic() + max_seconds
    with (
        _opened(url, timeout, max_seconds) as response,
        path.open("xb") as file,
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        size = response.headers.get("Content-Length")
        expected = None if size is None else int(size)
        if expected is not None and expected > max_bytes:
            raise ValueError(f"the file should have at most {max_bytes} bytes but has {expected}")
        task = progress.add_task(path.name, total=expected)
        digest, received = hashlib.sha256(), 0
        # One read of the connection at a time: to fill a block, a slow one could be read for ever.
        while block := response.read1(BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            progress.advance(task, len(block))
            if received > max_bytes:
                raise ValueError(f"the file should have at most {max_bytes} bytes but has more")
            if time.monotonic() > end:
                raise ValueError(f"{received} bytes came in {max_seconds:g} seconds, and then more")
        if expected is not None and received != expected:
            raise ValueError(f"the connection ended after {received} of {expected} bytes")
    return digest.hexdigest()


def _opened(url: str, timeout: float, max_seconds: float) -> HTTPResponse:
    """Return the response of a server, which may send its headers a byte at a time as well.

    No timeout of a socket ends that, so a thread waits for them. It ends with the program.
    """
    found: list[HTTPResponse] = []
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            found.append(urlopen(Request(url, headers={"User-Agent": "lightning-stable"}), timeout=timeout))
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    thread.join(max_seconds)
    if failed:
        raise failed[0]
    if not found:
        raise ValueError(f"the server did not answer in {max_seconds:g} seconds")
    return found[0]
