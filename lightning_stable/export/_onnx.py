"""The package onnx, which is an extra."""

from __future__ import annotations

import importlib
from typing import Any


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
