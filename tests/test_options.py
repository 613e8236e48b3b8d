"""A dataclass as the options of a command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lightning_stable.options import Positive, add_options, attribute_docs, between, read_options


@dataclass(frozen=True, kw_only=True)
class Base:
    """What all have.

    Attributes:
        place: Folder with
            50 % of it.
    """

    place: Path


@dataclass(frozen=True, kw_only=True)
class Example(Base):
    """Options.

    Attributes:
        kind: Kind: one of two.
        half_life: Steps of it.
        names: Names of all.
        fast: Hurry.
        share: Share of it.

    Not an attribute: this line.
    """

    kind: Literal["a", "b"] = "a"
    half_life: Positive | None = None
    names: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    fast: bool = False
    share: Annotated[float, between("(0, 1]")] = 0.5


def parse(*words: str) -> Example:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Example)
    return read_options(parser.parse_args(words), Example)


def test_defaults_are_those_of_the_fields() -> None:
    assert parse("x") == Example(place=Path("x"))


def test_every_type() -> None:
    words = ["x", "--kind", "b", "--half-life", "3", "--names", "n", "m", "--fast", "--share", "1"]
    assert parse(*words) == Example(place=Path("x"), kind="b", half_life=3, names=("n", "m"), fast=True, share=1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--half-life 0", "argument --half-life: must be a positive integer. Got 0"),
        ("--half-life 1.5", "argument --half-life: must be a positive integer. Got 1.5"),
        ("--share 0", r"argument --share: must be a number in \(0, 1\]. Got 0"),
        ("--share nan", r"argument --share: must be a number in \(0, 1\]. Got nan"),
        ("--kind c", "argument --kind: invalid choice: 'c'"),
    ],
)
def test_an_error_names_the_option(words: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=message):
        parse("x", *words.split())


def test_help_is_what_the_docstrings_say() -> None:
    assert attribute_docs(Example) == {
        "place": "folder with 50 %% of it",
        "kind": "kind: one of two",
        "half_life": "steps of it",
        "names": "names of all",
        "fast": "hurry",
        "share": "share of it",
    }
    parser = argparse.ArgumentParser(prog="x")
    add_options(parser, Example)
    shown = " ".join(parser.format_help().split())
    assert "--kind {a,b} kind: one of two (default: a)" in shown
    assert "--names NAME [NAME ...] names of all --fast hurry --share SHARE share of it (default: 0.5)" in shown
