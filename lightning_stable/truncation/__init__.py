"""Truncation: a recurrence evaluated exactly as a feed-forward function of its last ``window`` inputs."""

from lightning_stable.truncation.truncate import truncate, window_
from lightning_stable.truncation.windowed import Windowed

__all__ = ["Windowed", "truncate", "window_"]
