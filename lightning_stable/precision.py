"""Full float32 precision for arithmetic whose margins are finer than what a training step may compute in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run the block without autocast and without TF32 or bfloat16 products of float32 matrices.

    Both are good enough for a gradient, and a hundred times coarser than the margins of a projection. A manual
    optimization step may run inside autocast.
    """
    autocast = torch.autocast(device.type, enabled=False) if is_autocasting(device) else nullcontext()
    with autocast, _ieee_products(device):
        yield


def is_autocasting(device: torch.device) -> bool:
    """Return whether operations on the device are cast to a lower precision here."""
    if not hasattr(torch.amp, "is_autocast_available"):  # torch 2.3 has a function for each of two devices
        if device.type == "cpu":
            return torch.is_autocast_cpu_enabled()
        return device.type == "cuda" and torch.is_autocast_enabled()
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


@contextmanager
def _ieee_products(device: torch.device) -> Iterator[None]:
    backend: Any = (
        torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    )
    if not hasattr(backend, "fp32_precision"):  # torch < 2.9 has one setting for all
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    saved = backend.fp32_precision
    try:
        backend.fp32_precision = "ieee"
        yield
    finally:
        backend.fp32_precision = saved
