"""Looking into nested containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def parts_of(kind: type[Kind], structure: Any) -> Iterator[Kind]:
    """All objects of a kind in a structure of tuples, lists and mappings."""
    pending, seen = [structure], set()
    while pending:
        part = pending.pop()
        if isinstance(part, kind):
            yield part
        elif isinstance(part, (Mapping, tuple, list)) and id(part) not in seen:  # may contain itself
            seen.add(id(part))
            pending.extend(part.values() if isinstance(part, Mapping) else part)
