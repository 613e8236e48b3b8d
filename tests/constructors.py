"""Bad values for every argument of a constructor, by the kind of the argument."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

# Values of a wrong type, and values of the right type that are wrong.
Kind = tuple[tuple[Any, ...], tuple[Any, ...]]

POSITIVE: Kind = (1.5, True, "3"), (0, -1)
NONNEGATIVE: Kind = (1.5, True, "3"), (-1,)
SEED: Kind = (1.0, True, "3", None), (-1, 2**63)
BOOLEAN: Kind = (1, "yes", None), ()
SIZE_OF_EFFECT: Kind = (True, "0.9", None), (-0.1, math.nan, math.inf)
SHARE: Kind = (True, "half", None), (-0.1, 1.0, math.nan)
RATE_OF_LEARNING: Kind = (True, "1e-3", None), (0, -1, math.nan, math.inf)
PATH: Kind = (3, True), ("",)
CHOICE: Kind = (3, None), ("neither",)


def parser(constructor: Callable[..., Any]) -> ArgumentParser:
    """A command line for the constructor, whose options begin with ``--of.``, as LightningCLI would make it."""
    options = ArgumentParser(exit_on_error=False)
    options.add_class_arguments(constructor, "of")  # type: ignore[arg-type]
    return options


def defaults(constructor: Callable[..., Any]) -> dict[str, Any]:
    """All arguments with their defaults, those that ``**kwargs`` hands on to a base class included."""
    arguments: dict[str, Any] = parser(constructor).get_defaults().of.as_dict()
    return arguments


def of_numpy(arguments: dict[str, Any]) -> dict[str, Any]:
    """The integers and floats among some arguments, as NumPy's."""
    kinds = {int: np.int64, float: np.float64}
    return {name: kinds[type(value)](value) for name, value in arguments.items() if type(value) in kinds}


def cases(rows: Iterable[tuple[Callable[..., Any], dict[str, Any]]], kinds: dict[str, Kind]) -> Any:
    """Parametrize a test by constructor, good arguments, the name of one of them, and bad values for it.

    An argument without a kind is an error: whoever adds one says how it may be wrong.
    """
    return pytest.mark.parametrize(
        ("constructor", "good", "name", "kind"),
        [
            pytest.param(constructor, good, name, kinds[name], id=f"{constructor.__name__}-{name}")
            for constructor, good in rows
            for name in defaults(constructor)
        ],
    )


def refused(constructor: Callable[..., Any], good: dict[str, Any], name: str, kind: Kind) -> None:
    """Check that every bad value is refused with the right exception, which names the argument and the value."""
    constructor(**good)
    for error, values in zip((TypeError, ValueError), kind, strict=True):
        for value in values:
            with pytest.raises(error, match=rf"`{name}`.* Got .*{re.escape(repr(value))}") as raised:
                constructor(**good | {name: value})
            assert type(raised.value) is error
