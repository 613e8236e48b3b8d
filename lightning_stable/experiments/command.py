"""The command line of an experiment that is run as a module: ``python -m lightning_stable.experiments.NAME``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lightning_stable.options import add_options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionsT = TypeVar("OptionsT", bound="DataclassInstance")


def parser_of(name: str, description: str, options: type[DataclassInstance]) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        name: The name of the experiment.
        description: What it does.
        options: The dataclass of its options.
    """
    parser = argparse.ArgumentParser(prog=f"python -m lightning_stable.experiments.{name}", description=description)
    add_options(parser, options)
    return parser


def run_with(parser: argparse.ArgumentParser, run: Callable[[OptionsT], int], options: OptionsT) -> int:
    """Run the experiment and return its exit status; a bad option ends in the parser's error, not in a traceback."""
    try:
        return run(options)
    except ValueError as error:
        parser.error(str(error))
