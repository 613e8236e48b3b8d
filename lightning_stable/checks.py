"""Argument checks: each returns the value as the plain Python type it was checked to be, or raises.

A value of a wrong type raises TypeError, a wrong value of the right type raises ValueError; both messages name the
argument and what was given. Numbers of NumPy are accepted and become Python's own, which pickle and print plainly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path


def integer(name: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """Return an integer of at least ``minimum`` and at most ``maximum``; a bool is none.

    Raises:
        TypeError: If the value is no integer.
        ValueError: If it is out of range.
    """
    if maximum is not None:
        wanted = f"an integer in {minimum} .. {maximum}"
    else:
        wanted = {0: "a nonnegative integer", 1: "a positive integer"}.get(minimum, f"an integer of at least {minimum}")
    # bool is an int in Python, and `batch_size: true` in a configuration is a mistake.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be {wanted}. Got {value!r}.")
    found = int(value)
    if found < minimum or (maximum is not None and found > maximum):
        raise ValueError(f"`{name}` must be {wanted}. Got {value!r}.")
    return found


def number(name: str, value: object, interval: str = "(-inf, inf)") -> float:
    """Return a number in ``interval``, which is written as in mathematics: ``"(0, 1]"``, ``"[0, inf)"``.

    Raises:
        TypeError: If the value is no real number.
        ValueError: If it is NaN or outside the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number in {interval}. Got {value!r}.")
    try:
        found = float(value)
    except OverflowError:  # an int beyond the largest float
        found = -math.inf if value < 0 else math.inf
    above = found >= low if interval[0] == "[" else found > low
    below = found <= high if interval[-1] == "]" else found < high
    if not (above and below):
        raise ValueError(f"`{name}` must be a number in {interval}. Got {value!r}.")
    return found


def boolean(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        TypeError: If the value is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Got {value!r}.")
    return value


def text(name: str, value: object) -> str:
    """Return a string that is not empty.

    Raises:
        TypeError: If the value is no string.
        ValueError: If it is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string. Got {value!r}.")
    if not value:
        raise ValueError(f"`{name}` must not be empty. Got {value!r}.")
    return value


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return one of the choices.

    Raises:
        TypeError: If the value is no string.
        ValueError: If it is none of the choices.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be one of {list(choices)}. Got {value!r}.")
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}. Got {value!r}.")
    return value


def patterns(name: str, value: object) -> list[str] | None:
    """Return the patterns of names given by one string or several; None stands for all names.

    Raises:
        TypeError: If the value is neither None, a string nor strings.
    """
    if value is None:
        return None
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    found = [pattern for pattern in given if isinstance(pattern, str)]
    if len(found) < len(given):
        raise TypeError(f"`{name}` must be a name pattern, several of them, or None. Got {value!r}.")
    return found


def seed(name: str, value: object) -> int:
    """Return an integer that can seed a generator of torch, 0 .. 2 ** 63 - 1.

    Raises:
        TypeError: If the value is no integer.
        ValueError: If it is out of range.
    """
    return integer(name, value, 0, 2**63 - 1)


def path(name: str, value: object) -> Path:
    """Return the path of a file or a folder, which need not exist.

    Raises:
        TypeError: If the value is neither a string nor a path.
        ValueError: If it is empty, which would stand for the working directory.
    """
    if not isinstance(value, (str, PathLike)):
        raise TypeError(f"`{name}` must be a path. Got {value!r}.")
    if value == "":
        raise ValueError(f"`{name}` must not be empty. Got {value!r}.")
    return Path(value)
