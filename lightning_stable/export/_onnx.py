"""The package onnx, which is an extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

_LONGEST_REASON = 300


def import_onnx() -> Any:
    """Return the package onnx if the others of the extra are there too.

    Raises:
        ModuleNotFoundError: If one is missing; the message names the extra.
    """
    try:
        for name in ("onnxscript", "onnxruntime"):
            importlib.import_module(name)
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"ONNX files need onnx, onnxscript and onnxruntime: pip install 'lightning-stable[export]'. Got {error}."
        ) from error


@contextmanager
def converting() -> Iterator[None]:
    """Say in one line what the converter or the runtime could not do, and name the format that needs neither.

    Raises:
        ValueError: If the block raises anything but an OSError, which is about the file.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the converter's own report is a page long
            cause = cause.__cause__
        reason = shorten(f"{type(cause).__name__}: {cause}", _LONGEST_REASON, placeholder=" ...")
        raise ValueError(
            f'The model must be one that ONNX has operators for; `format="torch-export"` needs none. Got {reason}'
        ) from error
