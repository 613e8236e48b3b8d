"""Argument checks shared by the data modules."""


def require_positive_int(name: str, value: object) -> None:
    """Refuse anything but an integer of at least one.

    Raises:
        ValueError: naming the argument and what was given.
    """
    # bool is an int in Python, and `batch_size: true` in a config file is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Got {value!r}.")


def require_bool(name: str, value: object) -> None:
    """Refuse anything but True and False.

    Raises:
        ValueError: naming the argument and what was given.
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Got {value!r}.")


def require_seed(value: object) -> None:
    """Refuse anything but an integer that can seed a generator of torch.

    Raises:
        ValueError: saying what was given.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"`seed` must be an integer in 0 .. 2 ** 63 - 1. Got {value!r}.")
