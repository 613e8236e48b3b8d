"""Input sets as they are written on the command line."""

from __future__ import annotations

from collections.abc import Callable

from lightning_stable.stability import ActiveEntries, Box, InputSet, L2Ball
from lightning_stable.stability.inputs.sets import SupNorm

_KINDS: dict[str, Callable[..., InputSet]] = {
    "active": lambda count: ActiveEntries(int(count)),
    "l2": lambda radius: L2Ball(float(radius)),
    "box": lambda low, high: Box(float(low), float(high)),
}


def parse_input_bound(text: str) -> InputSet:
    """The input set that a number, ``active:COUNT``, ``l2:RADIUS`` or ``box:LOW:HIGH`` stands for.

    Raises:
        ValueError: If it is none of them.
    """
    kind, *numbers = text.split(":")
    try:
        return _KINDS[kind](*numbers) if numbers else SupNorm(float(kind))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "`--input-bound` must be a finite number of at least 0, active:COUNT, l2:RADIUS, or box:LOW:HIGH with "
            f"LOW <= HIGH. Got {text!r}."
        ) from error
