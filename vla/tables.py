"""Tables for people, in which no number is cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 160
"""Columns up to which a table is printed whole, even where the terminal (80 in a log) is narrower."""


def print_table(table: Table) -> None:
    """Prints a table as wide as its contents want, up to WIDEST: half a number is worse than a line that the terminal wraps. What stands in
    brackets in a cell is its text: instructions and names come from data."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    wanted = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    console.width = max(console.width, wanted)
    console.print(table)
