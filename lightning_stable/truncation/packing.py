"""Carried states as plain containers and tensors, for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_stable.truncation.memory import CarriedState, Memory, carry


def pack_state(state: Any) -> dict[str, Any]:
    """A state of a recurrent layer, windowed or not, as what ``torch.load(weights_only=True)`` reads."""
    parts = list(state) if isinstance(state, tuple) else [state]
    memory = parts[0].memory if isinstance(parts[0], CarriedState) else None
    packed: dict[str, Any] = {
        "parts": [part.detach().as_subclass(Tensor).clone() for part in parts],
        "is_tuple": isinstance(state, tuple),
    }
    if memory is not None and not memory.lost:
        kept = memory.apply(torch.clone)
        rows = None if kept.rows is None else [list(part) for part in kept.rows]
        packed["memory"] = {"seen": kept.seen, "recent": kept.recent, "rows": rows}
    return packed


def unpack_state(packed: dict[str, Any], layer: nn.Module) -> Any:
    """The state again; ``layer`` is the one that returned it."""
    parts = packed["parts"]
    if "memory" in packed:
        given = packed["memory"]
        rows = None if given["rows"] is None else tuple(tuple(state) for state in given["rows"])
        memory = Memory(layer, given["seen"], given["recent"], rows)
        parts = [carry(part, memory) for part in parts]
    return tuple(parts) if packed["is_tuple"] else parts[0]
