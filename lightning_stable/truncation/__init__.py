"""Truncation: a recurrence evaluated exactly as a feed-forward function of its last ``window`` inputs."""

from lightning_stable.truncation.carried_state import pack_state, unpack_state
from lightning_stable.truncation.truncate import truncate, window_
from lightning_stable.truncation.warm_chunks import truncate_at_least
from lightning_stable.truncation.windowed import Windowed

__all__ = [
    "Windowed",
    "pack_state",
    "truncate",
    "truncate_at_least",
    "unpack_state",
    "window_",
]
