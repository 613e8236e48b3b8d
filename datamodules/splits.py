"""The three splits of a data set, and how a data module looks up what it holds for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from lightning_stable import checks

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_Part = TypeVar("_Part")


def of_split(parts: Mapping[Split, _Part], split: Split, happens: str) -> _Part:
    """Return the part of a split.

    Args:
        parts: What ``setup`` made, by split; empty before it has run.
        split: One of ``SPLITS``.
        happens: What ``setup`` does, for the message: ``"The text is read"``.

    Raises:
        TypeError: If ``split`` is not a string.
        ValueError: If there is no such split or ``setup`` has not run.
    """
    checks.choice("split", split, SPLITS)
    if not parts:
        raise ValueError(f"{happens} by `setup()`, which must be called first. Got nothing yet.")
    return parts[split]
