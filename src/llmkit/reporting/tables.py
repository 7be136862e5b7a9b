"""Human-readable results: a line for each figure, then a table for each list of similar rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from llmkit.reporting.format import heading, printable

_Rows = Sequence[Mapping[str, Any]]

_WIDTH = 2000  # without a terminal, lines are not folded
_PLAIN = (str, int, float, bool, type(None))


class Layout(NamedTuple):
    """A result as it is shown: facts by their names, and tables by their titles."""

    facts: Sequence[tuple[str, str]]
    tables: Sequence[tuple[str, _Rows]]


def layout(figures: Mapping[str, Any]) -> Layout:
    """The layout of any figures.

    A list of mappings is a table, and so is a mapping of mappings that have the same keys; titles
    and headings are the keys in words. All others are facts.
    """
    found = [
        (heading(name), [{heading(key): value for key, value in row.items()} for row in rows])
        for name, rows in _tables_of(figures)
    ]
    return Layout(list(_facts_of(figures)), found)


def show(shown: Layout, console: Console) -> None:
    """Prints the facts, then the tables."""
    columns = (Column(overflow="fold"), Column(overflow="fold"))
    facts = Table(*columns, show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in shown.facts:
        if console.is_terminal:
            facts.add_row(Text(name, style="bold"), Text(value))
        else:
            console.print(Text(f"{name}: {value}"))
    if facts.row_count:
        console.print(facts)
    for title, rows in shown.tables:
        console.print(_table(title, rows))


def layout_text(shown: Layout) -> str:
    """The same as plain text, for a file or a pipe."""
    file = io.StringIO()
    show(shown, Console(file=file, width=_WIDTH, highlight=False, soft_wrap=True))
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))


def _facts_of(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The figures that belong to no table, by their path, as text."""
    for key, value in figures.items():
        if _rows(value):
            continue
        if isinstance(value, Mapping):
            yield from _facts_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key, shown_value(value)


def _tables_of(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, _Rows]]:
    """The tables among the figures, by their path."""
    for key, value in figures.items():
        if rows := _rows(value):
            yield prefix + key, rows
        elif isinstance(value, Mapping):
            yield from _tables_of(value, f"{prefix}{key}.")


def _rows(value: Any) -> _Rows:
    """The value as rows of a table; empty if it is not a table."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return value
    if isinstance(value, Mapping) and len(value) > 1:
        inner = list(value.values())
        if all(isinstance(row, Mapping) and row.keys() == inner[0].keys() for row in inner):
            return [{"": key, **row} for key, row in value.items()]
    return []


def _table(title: str, rows: _Rows) -> Table:
    table = Table(title=Text(printable(title)), box=SIMPLE_HEAD, title_justify="left")
    columns = plain_columns(rows)
    for key, is_numeric in columns.items():
        table.add_column(
            Text(printable(key)), justify="right" if is_numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(shown_value(row.get(key))) for key in columns))
    return table


def plain_columns(rows: _Rows) -> dict[str, bool]:
    """The columns of rows that hold no tables themselves, and whether all their values are
    numbers."""
    nested = {key for row in rows for key, value in row.items() if _is_nested(value)}
    return {
        key: all(isinstance(row.get(key), int | float | None) for row in rows)
        for key in rows[0]
        if key not in nested
    }


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or bool(_rows(value))


def shown_value(value: Any) -> str:
    """The text of a value in a table cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(each, _PLAIN) for each in value):
        return ", ".join(map(shown_value, value))
    return "" if value is None else printable(str(value))


FINDINGS = (
    "blank", "left_out", "duplicates", "conflicts", "overlap", "unseen_labels", "tag_count",
    "bad_tags", "bad_spans", "bad_marks",
)  # fmt: skip
PLACES = 5
"""Maximum number of rows listed for each finding; JSON lists more."""


def report_tables(report: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the nested parts of the report of `finetune --dry-run` into tables."""
    nested = {"classes", "splits", "lengths", "warnings", *FINDINGS}
    facts = {name: value for name, value in report.items() if name not in nested}
    return {
        **facts,
        "splits": {name: _sizes(each) for name, each in report["splits"].items()},
        "lengths": {name: _length(each) for name, each in report["lengths"].items()},
        **({"classes": list(_classes(report))} if "classes" in report else {}),
        "findings": list(_findings(report)),
    }


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("rows", "words") if name in found}


def _length(found: Mapping[str, Any]) -> dict[str, Any]:
    shares = {f"{percent}%": tokens for percent, tokens in found["percentiles"].items()}
    if "windows" in found:
        return {**shares, **{name: found[name] for name in ("windows", "words_without_token")}}
    return {**shares, "truncated": f"{found['truncated_share']:.2%}"}


def _classes(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    counts = {name: each.get("classes", {}) for name, each in report["splits"].items()}
    for label in report["classes"]:
        yield {"class": label, **{name: found.get(label, 0) for name, found in counts.items()}}


def _findings(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in filter(report.__contains__, FINDINGS):
        found = report[name]
        count = found.get("count_stripped", found["count"])
        yield {"what": heading(name), "count": count, "first": "; ".join(_places(found))}


def _places(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found["rows"][:PLACES]:
        if "labels" in row:
            several = (f"{label}: {_place(places[0])}" for label, places in row["labels"].items())
            yield ", ".join(several)
        else:
            yield _place(row)


def _place(row: Mapping[str, Any]) -> str:
    return f"{str(row['file']).rpartition('/')[2]} row {row['row']}"
