"""What is printed: counted nouns, and tables that no terminal cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# More columns than any table needs.
_WIDEST = 1000


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is given in the singular: ``1 epoch``, ``6 epochs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is. A narrow terminal may wrap it: numbers cut to fit say less."""
    from rich.console import Console
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    Console(file=console.file, width=max(console.width, needed)).print(table)
