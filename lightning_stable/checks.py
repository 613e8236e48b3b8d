"""Argument checks: each returns the value as the plain Python type it was checked to be, or raises.

A value of a wrong type raises TypeError, a wrong value of the right type raises ValueError; both messages name the
argument and what was given. Numbers of NumPy are accepted and become Python's own, which pickle and print plainly.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from os import PathLike, fsencode
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which the help of a command does without
    import torch
    from torch import Tensor

_LONGEST_VALUE = 100
_LONGEST_NAME = 255  # bytes of a file's name, on all common file systems


def shown(value: object) -> str:
    """Return a value as messages show it: as Python prints it, on one line of at most about 100 characters."""
    try:
        text = repr(value)
    except Exception:  # a user's own, or an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    if len(text) <= _LONGEST_VALUE and "\n" not in text:
        return text
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ..."


def integer(name: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """Return an integer of at least ``minimum`` and at most ``maximum``; a bool is none.

    Without a maximum it must fit into 64 bits, as whatever counts with it does.

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
        raise TypeError(f"`{name}` must be {wanted}. Got {shown(value)}.")
    found = int(value)
    if maximum is None and found > sys.maxsize:
        wanted += f", at most {sys.maxsize}"
    if found < minimum or found > (sys.maxsize if maximum is None else maximum):
        raise ValueError(f"`{name}` must be {wanted}. Got {shown(value)}.")
    return found


def number(name: str, value: object, interval: str = "(-inf, inf)") -> float:
    """Return a number in ``interval``, which is written as in mathematics: ``"(0, 1]"``, ``"[0, inf)"``.

    Raises:
        TypeError: If the value is no real number.
        ValueError: If it is NaN or outside the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number in {interval}. Got {shown(value)}.")
    try:
        found = float(value)
    except OverflowError:  # an int beyond the largest float
        found = -math.inf if value < 0 else math.inf
    above = found >= low if interval[0] == "[" else found > low
    below = found <= high if interval[-1] == "]" else found < high
    if not (above and below):
        raise ValueError(f"`{name}` must be a number in {interval}. Got {shown(value)}.")
    return found


def boolean(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        TypeError: If the value is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Got {shown(value)}.")
    return value


def text(name: str, value: object) -> str:
    """Return a string that is not empty.

    Raises:
        TypeError: If the value is no string.
        ValueError: If it is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string. Got {shown(value)}.")
    if not value:
        raise ValueError(f"`{name}` must not be empty. Got {shown(value)}.")
    return value


def label(name: str, value: object) -> str:
    """Return a string, which may be empty.

    Raises:
        TypeError: If the value is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string. Got {shown(value)}.")
    return value


def strings(name: str, value: object) -> list[str]:
    """Return the strings of a sequence.

    Raises:
        TypeError: If the value is no sequence of strings.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise TypeError(f"`{name}` must be a sequence of strings. Got {shown(value)}.")
    return list(value)


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return one of the choices.

    Raises:
        TypeError: If the value is no string.
        ValueError: If it is none of the choices.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be one of {list(choices)}. Got {shown(value)}.")
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}. Got {shown(value)}.")
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
        raise TypeError(f"`{name}` must be a name pattern, several of them, or None. Got {shown(value)}.")
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
        ValueError: If it is empty, which would stand for the working directory, or no file can have it.
    """
    if not isinstance(value, (str, PathLike)):
        raise TypeError(f"`{name}` must be a path. Got {shown(value)}.")
    if value == "":
        raise ValueError(f"`{name}` must not be empty. Got {shown(value)}.")
    named = Path(value)
    if "\0" in str(named) or not all(map(_is_name, named.parts)):
        raise ValueError(f"`{name}` must be a path that a file can have. Got {shown(value)}.")
    return named


def _is_name(part: str) -> bool:
    try:
        return len(fsencode(part)) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def function(name: str, value: Any) -> Callable[..., Any]:
    """Return what can be called.

    Raises:
        TypeError: If the value is anything else.
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a function. Got {shown(value)}.")
    found: Callable[..., Any] = value
    return found


def module(name: str, value: object) -> torch.nn.Module:
    """Return a module.

    Raises:
        TypeError: If the value is anything else.
    """
    from torch import nn

    if isinstance(value, type) and issubclass(value, nn.Module):
        got = f"the class {value.__name__}; call it to make a module"
        raise TypeError(f"`{name}` must be a torch.nn.Module. Got {got}.")
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{name}` must be a torch.nn.Module. Got {shown(value)}.")
    return value


def tensor(name: str, value: object) -> Tensor:
    """Return a tensor that has its entries: dense, and not on the meta device.

    Raises:
        TypeError: If the value is no tensor.
        ValueError: If it is sparse, nested, or on the meta device.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor. Got {shown(value)}.")
    if value.is_nested or value.layout is not torch.strided or value.is_meta:
        kind = "nested" if value.is_nested else "meta" if value.is_meta else str(value.layout)
        raise ValueError(f"`{name}` must be a dense tensor with entries. Got a {kind} one.")
    return value


def real_tensor(name: str, value: object) -> Tensor:
    """Return a dense tensor of integers, or of floating-point numbers of at least 16 bits.

    Raises:
        TypeError: If the value is no tensor.
        ValueError: If its entries are anything else.
    """
    import torch

    found, precise = tensor(name, value), (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if found.is_complex() or found.is_quantized or (found.is_floating_point() and found.dtype not in precise):
        raise ValueError(f"`{name}` must be real numbers of at least 16 bits. Got {found.dtype}.")
    return found


def ids(name: str, value: object) -> Tensor:
    """Return a dense, one-dimensional tensor of integers.

    Raises:
        TypeError: If the value is no tensor.
        ValueError: If it has another shape, or holds other numbers.
    """
    found = tensor(name, value)
    if found.is_floating_point() or found.is_complex() or found.dim() != 1:
        raise ValueError(
            f"`{name}` must be a one-dimensional tensor of integers. Got {found.dtype} of shape {tuple(found.shape)}."
        )
    return found


def device(name: str, value: Any) -> torch.device:
    """Return a device.

    Raises:
        TypeError: If the value is neither a device nor the name of one.
        ValueError: If there is no device of this name.
    """
    import torch

    if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
        raise TypeError(f"`{name}` must be a device or its name. Got {shown(value)}.")
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"`{name}` must be the name of a device. Got {shown(value)}.") from error


def real_dtype(name: str, value: object) -> torch.dtype:
    """Return a dtype of floating-point numbers of at least 16 bits.

    Raises:
        TypeError: If the value is no dtype.
        ValueError: If it is another dtype.
    """
    import torch

    if not isinstance(value, torch.dtype):
        raise TypeError(f"`{name}` must be a torch.dtype. Got {shown(value)}.")
    if value not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"`{name}` must be a dtype of real numbers of at least 16 bits. Got {value}.")
    return value
