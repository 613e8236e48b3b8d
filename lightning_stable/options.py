"""A command line from the dataclass of its options: names, types, defaults and help come from one place.

Torch is not imported here, and neither is jsonargparse: the help of a command has to come within 0.2 seconds.
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from lightning_stable import checks
from lightning_stable.files import check_file, check_folder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
OptionsT = TypeVar("OptionsT", bound="DataclassInstance")
_WIDTH = 100
_LARGEST_SEED = 2**32 - 1


def add_command(
    commands: Commands,
    name: str,
    options: type[OptionsT],
    run: Callable[[OptionsT], int],
    *,
    help: str,  # argparse calls it so
    description: str,
    examples: Sequence[str],
    **arguments: Any,
) -> None:
    """Add a command whose options are the fields of a dataclass.

    Args:
        commands: The commands of the parser.
        name: The name of the command.
        options: The dataclass; :func:`add_options` says what is read from it.
        run: Called with the options; it returns the exit status.
        help: One line for the list of commands.
        description: What the command does.
        examples: Command lines without ``lightning-stable NAME``.
        **arguments: More arguments of the parser.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, _WIDTH),
        formatter_class=argparse.RawDescriptionHelpFormatter,  # which keeps the lines of the examples
        epilog="\n".join(["examples:", *(f"  lightning-stable {name} {example}".rstrip() for example in examples)]),
        **arguments,
    )
    add_options(parser, options)
    # The default would replace a --traceback in front of the command.
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=TRACEBACK)
    parser.set_defaults(run=lambda parsed: run(read_options(parsed, options)))


TRACEBACK = "show the whole traceback of an error"


def add_options(parser: argparse.ArgumentParser, options: type[DataclassInstance]) -> None:
    """Add an argument for every field of a dataclass.

    A field without a default is positional. Its type gives parser or choices, its entry under ``Attributes:`` in the
    docstring the help, and its metadata further arguments of ``add_argument``; ``"flag"`` there is the name of the
    option, and options with the same ``"one_of"`` exclude each other.

    Args:
        parser: The parser.
        options: The dataclass.
    """
    hints, docs = get_type_hints(options, include_extras=True), attribute_docs(options)
    groups: dict[str, Any] = {}
    for field in fields(options):
        arguments = _type_arguments(hints[field.name]) | dict(field.metadata)
        flag = arguments.pop("flag", f"--{field.name.replace('_', '-')}")
        group = arguments.pop("one_of", None)
        if group is not None and group not in groups:
            groups[group] = parser.add_mutually_exclusive_group()
        place = parser if group is None else groups[group]
        text = docs.get(field.name, "")
        if "choices" in arguments and "metavar" in arguments:  # which hides the choices
            text += f": {', '.join(arguments['choices'])}"
        if field.default is not MISSING:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            shown = default is not None and not isinstance(default, (bool, list))
            arguments |= {"dest": field.name, "default": default}
            place.add_argument(flag, help=f"{text} (default: %(default)s)" if shown else text, **arguments)
        elif "flag" in field.metadata:
            place.add_argument(flag, help=text, dest=field.name, required=True, **arguments)
        else:
            place.add_argument(field.name, help=text, **arguments)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and names the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def read_options(parsed: argparse.Namespace, options: type[OptionsT]) -> OptionsT:
    """Return the options that :func:`add_options` parsed, lists as tuples."""
    values = {field.name: getattr(parsed, field.name) for field in fields(options)}
    return options(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def attribute_docs(options: type) -> dict[str, str]:
    """Return what the ``Attributes:`` sections of a class and its bases say, as help texts, by attribute."""
    docs: dict[str, str] = {}
    for part in reversed(options.__mro__):
        section = inspect.cleandoc(part.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^ {4}(\w+): (.*?)(?=\n {0,4}\S|\s*\Z)", section, flags=re.DOTALL | re.MULTILINE):
            first, rest = text[0], " ".join(text.split())[1:].removesuffix(".")
            docs[name] = (first.lower() + rest).replace("%", "%%")
    return docs


def positive(text: str) -> int:
    """Parse a positive integer."""
    return _checked(lambda: checks.integer("value", int(text)), "a positive integer", text)


def between(interval: str) -> Callable[[str], float]:
    """Return a parser of numbers in an interval, which is written as for :func:`lightning_stable.checks.number`."""
    return lambda text: _checked(lambda: checks.number("value", float(text), interval), f"a number in {interval}", text)


def seed(text: str) -> int:
    """Parse a seed of a whole program, which Lightning, NumPy and Python take as well as torch."""
    return _checked(lambda: checks.integer("value", int(text), 0, _LARGEST_SEED), f"in 0 .. {_LARGEST_SEED}", text)


def path(text: str) -> Path:
    """Parse a path that a file can have."""
    return _checked(lambda: checks.path("value", text), "a path", text)


def text(text: str) -> str:
    """Parse a text that is not empty."""
    return _checked(lambda: checks.text("value", text), "a text that is not empty", text)


def existing_folder(text: str) -> Path:
    """Parse the path of a folder that is there."""
    found = path(text)
    if not found.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder that exists. Got {text}")
    return found


def output_folder(text: str) -> Path:
    """Parse the path of a folder that is there, or can be made."""
    found = path(text)
    _checked(lambda: check_folder(found), "a folder, there or to be made, to write to", text)
    return found


def output_file(text: str) -> Path:
    """Parse the path of a file that is there, or can be made."""
    found = path(text)
    _checked(lambda: check_file(found), "a file, there or to be made, in a folder to write to", text)
    return found


Positive = Annotated[int, positive]
Text = Annotated[str, text]
Seed = Annotated[int, seed]
ExistingFolder = Annotated[Path, existing_folder]
OutputFolder = Annotated[Path, output_folder]

ValueT = TypeVar("ValueT")


def _checked(parse: Callable[[], ValueT], wanted: str, text: str) -> ValueT:
    try:
        return parse()
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}. Got {_short(text)}") from None


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."


def _type_arguments(hint: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` that a type implies; the None of an optional type says nothing."""
    if NoneType in get_args(hint):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {"type": parts[1]}
    if origin is Literal:
        return {"choices": parts}
    if origin is tuple:
        return {"nargs": "+"} | _type_arguments(parts[0])
    if hint is Path:
        return {"type": path}
    return {"action": "store_true"} if hint is bool else {"type": hint}
