"""Argument checks shared by the data modules."""


def require_positive_int(name: str, value: object) -> None:
    """Refuse anything but an integer of at least one.

    Raises:
        ValueError: naming the argument and what was given.
    """
    # bool is an int in Python, and `batch_size: true` in a config file is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Got {value!r}.")
