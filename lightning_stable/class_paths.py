"""The import path of a model's class, as a checkpoint keeps it."""

from __future__ import annotations

from typing import Any

_KEY = "lightning_stable_class_path"


def record_class_path(checkpoint: dict[str, Any], model: object) -> None:
    """Let a checkpoint say of which class its model is."""
    checkpoint[_KEY] = f"{type(model).__module__}.{type(model).__qualname__}"


def recorded_class_path(checkpoint: dict[str, Any]) -> Any:
    """Return what :func:`record_class_path` kept, or whatever a file has in its place; None if that is nothing."""
    return checkpoint.get(_KEY)


def obstacle_to_import(path: str) -> str | None:
    """Return why a class of this path cannot be imported under it, as a clause; None if nothing speaks against it."""
    if path.startswith("__main__.") or "<locals>" in path:
        advice = "which cannot be imported: put the class at the top level of a module of its own"
        script = ", or, if the script trains under `if __name__ == '__main__'` only, name its module in its place"
        return advice if "<locals>" in path else advice + script
    if not all(name.isidentifier() for name in path.split(".")) or "." not in path:
        return "which is no import path"
    return None
