"""Argument checks shared by the models."""

from lightning.fabric.utilities.exceptions import MisconfigurationException


def require_positive_int(name: str, value: object, *, optional: bool = False) -> None:
    """Raise MisconfigurationException unless ``value`` is an integer of at least one; or None, if it is optional."""
    if optional and value is None:
        return
    # bool is an int in Python, and `num_layers: true` in a config file is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        or_none = ", or None" if optional else ""
        raise MisconfigurationException(f"`{name}` must be a positive integer{or_none}. Got {value!r}.")


def require_probability(name: str, value: object) -> None:
    """Raise MisconfigurationException unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise MisconfigurationException(f"`{name}` must lie in [0, 1). Got {value!r}.")


def require_positive(name: str, value: object) -> None:
    """Raise MisconfigurationException unless ``value`` is a positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise MisconfigurationException(f"`{name}` must be positive. Got {value!r}.")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise MisconfigurationException unless ``value`` is one of the choices."""
    if value not in choices:
        raise MisconfigurationException(f"`{name}` must be one of {list(choices)}. Got {value!r}.")
