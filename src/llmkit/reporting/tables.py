"""Human-readable results: a line for each figure, then a table for each list of similar rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmkit.reporting.console import printable

_Rows = Sequence[Mapping[str, Any]]

_WIDTH = 2000  # without a terminal, lines are not folded
_PLAIN = (str, int, float, bool, type(None))


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints the figures, then the tables among them.

    A list of mappings is a table, and so is a mapping of mappings that have the same keys.
    """
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _facts(figures):
        if console.is_terminal:
            facts.add_row(Text(name, style="bold"), Text(value))
        else:
            console.print(Text(f"{name}: {value}"))
    if console.is_terminal:
        console.print(facts)
    for name, rows in _tables(figures):
        console.print(_table(name, rows))


def result_text(figures: Mapping[str, Any]) -> str:
    """The same as plain text, for a file or a pipe."""
    file = io.StringIO()
    show(figures, Console(file=file, width=_WIDTH, highlight=False, soft_wrap=True))
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))


def _facts(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in figures.items():
        if _rows(value):
            continue
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _shown(value)


def _tables(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, _Rows]]:
    for key, value in figures.items():
        if rows := _rows(value):
            yield prefix + key, rows
        elif isinstance(value, Mapping):
            yield from _tables(value, f"{prefix}{key}.")


def _rows(value: Any) -> _Rows:
    """The value as rows of a table; empty if it is not a table."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return value
    if isinstance(value, Mapping) and len(value) > 1:
        inner = list(value.values())
        if all(isinstance(row, Mapping) and row.keys() == inner[0].keys() for row in inner):
            return [{"": key, **row} for key, row in value.items()]
    return []


def _table(name: str, rows: _Rows) -> Table:
    table = Table(title=name.replace("_", " "), box=SIMPLE_HEAD, title_justify="left")
    nested = {key for row in rows for key, value in row.items() if _is_nested(value)}
    columns = [key for key in rows[0] if key not in nested]
    for key in columns:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        table.add_column(
            key.replace("_", " "), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_shown(row.get(key))) for key in columns))
    return table


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or bool(_rows(value))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(each, _PLAIN) for each in value):
        return ", ".join(map(_shown, value))
    return "" if value is None else printable(str(value))
