"""Hyperparameters in Python's own types, which every checkpoint and log file can hold."""

from typing import Any


def plain(value: Any) -> Any:
    """Return a value whose numbers and arrays of NumPy and torch are Python's numbers and lists, in containers too.

    ``torch.load(weights_only=True)`` refuses a checkpoint that holds a number of NumPy.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
