"""Keep the model's batch for the twin as the model got it."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_stable.copying import parts_of


def shallow(batch: Any) -> Any:
    """Return new containers around the same tensors: a step may take things out of its batch."""
    if type(batch) is dict:
        return {key: shallow(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(shallow(value) for value in batch)
    return batch


def cloned(batch: Any) -> Any:
    """Return new containers around new tensors."""
    return apply_to_collection(batch, Tensor, Tensor.clone)


def versions(batch: Any) -> list[int]:
    """Return how often each tensor was changed in place, as torch counts it on the host; 0 for inference tensors."""
    return [0 if value.is_inference() else value._version for value in parts_of(Tensor, batch)]
