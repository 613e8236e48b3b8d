"""Text files of a data folder: which one holds a split, and its lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path


def read_lines(name: str, path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their ends; a byte order mark is skipped.

    Args:
        name: The argument the path came from, for error messages.
        path: The file.

    Raises:
        ValueError: If the file is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"`{name}` must be an existing text file; check the path. Got {str(path)!r}.")
    if path.stat().st_size == 0:
        raise ValueError(f"`{name}` must hold text. Got the empty file {str(path)!r}.")
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"`{name}` must be UTF-8; convert it. Got {str(path)!r}: {error}.") from error


def find_file(folder: Path, split: str, names: Sequence[str]) -> Path:
    """Return the first file of a folder that has one of the names.

    Args:
        folder: Where to look.
        split: What the file is for, for error messages.
        names: The names, the usual one first.

    Raises:
        ValueError: If there is none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    content = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise ValueError(
        f"`data_dir` must hold the {split} split; put it there as {' or '.join(names)}. Got {str(folder)!r}: {content}."
    )
