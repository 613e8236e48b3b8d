"""Carried states as plain containers and tensors, for checkpoints."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_stable.truncation.carried_state import CarriedState, Memory, carry, memory_of


def pack_state(state: Any) -> dict[str, Any]:
    """A state of a recurrent layer, windowed or not, as what ``torch.load(weights_only=True)`` reads."""
    parts = list(state) if isinstance(state, tuple) else [state]
    memory = parts[0].memory if isinstance(parts[0], CarriedState) else None
    packed: dict[str, Any] = {
        "parts": [part.detach().as_subclass(Tensor).clone() for part in parts],
        "is_tuple": isinstance(state, tuple),
    }
    if memory is not None and not memory.lost:
        kept = memory_of(parts, memory.layer)
        assert kept is not None
        kept = kept.apply(lambda tensor: tensor.detach().clone())
        packed["memory"] = {
            "seen": kept.seen,
            "recent": kept.recent,
            "masks": list(kept.masks),
            "rows": None if kept.rows is None else [list(state) for state in kept.rows],
            "batch": kept.batch,
        }
    return packed


def unpack_state(packed: dict[str, Any], layer: nn.Module) -> Any:
    """The state again; ``layer`` is the one that returned it."""
    parts = packed["parts"]
    if "memory" in packed:
        given = packed["memory"]
        rows = None if given["rows"] is None else tuple(tuple(state) for state in given["rows"])
        memory = Memory(layer, **given | {"masks": tuple(given["masks"]), "rows": rows})
        parts = [carry(part, memory, index) for index, part in enumerate(parts)]
    return tuple(parts) if packed["is_tuple"] else parts[0]
