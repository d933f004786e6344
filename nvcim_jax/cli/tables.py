"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_table"]


def print_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows with the same keys to stdout; numbers with four digits.

    Args:
        rows: One mapping a row.
        title: Line above the table.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*[_text(row.get(name)) for name in names])
    console = Console()
    # a file or a pipe gets the whole table, not one cut to eighty columns
    Console(width=None if console.is_terminal else 200).print(table)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
