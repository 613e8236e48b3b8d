"""Counted nouns, and tables that no terminal cuts."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from lightning_stable.printing import counted, print_whole


def test_one_is_not_plural() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def test_a_narrow_console_shows_every_digit() -> None:
    numbers, table = [str(10**12 + index) for index in range(9)], Table()
    table.add_row(*numbers)
    console = Console(file=io.StringIO(), width=40)
    print_whole(console, table)
    assert all(number in console.file.getvalue() for number in numbers)  # type: ignore[attr-defined]


def test_a_table_that_fits_is_not_stretched() -> None:
    table = Table()
    table.add_row("1")
    console = Console(file=io.StringIO(), width=40)
    print_whole(console, table)
    assert max(map(len, console.file.getvalue().splitlines())) < 10  # type: ignore[attr-defined]
