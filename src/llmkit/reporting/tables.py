"""Human-readable results: a line for each figure, then a table for each list of similar rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmkit.reporting.format import heading, printable

_Rows = Sequence[Mapping[str, Any]]

_WIDTH = 2000  # without a terminal, lines are not folded
_FOLDED = 20  # characters of a column in which a long value is folded
_PLAIN = (str, int, float, bool, type(None))


class Layout(NamedTuple):
    """A result as it is shown: facts by their names, and tables by their titles."""

    facts: Sequence[tuple[str, str]]
    tables: Sequence[tuple[str, _Rows]]


_OF_WINDOWS = ("windows", "words_without_token", "cut_questions")
"""What is shown of texts that are read in windows."""


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
    """Prints the facts, then the tables; where a table or a fact is wider than the console, its
    parts are printed below one another, and words are never divided."""
    _show_facts(shown.facts, console)
    for title, rows in shown.tables:
        columns = plain_columns(rows)
        widths = _widths([[key, *(shown_value(row.get(key)) for row in rows)] for key in columns])
        if room := _room(widths, console.width):
            console.print(_table(title, rows, columns, room))
        else:
            _show_stacked(title, rows, columns, console)


def _show_facts(facts: Sequence[tuple[str, str]], console: Console, indent: int = 0) -> None:
    if not console.is_terminal:
        for name, value in facts:
            console.print(Text(f"{name}: {value}"))
        return
    most = max((cell_len(name) for name, _ in facts), default=0)
    for name, value in facts:
        line = Table.grid(padding=(0, 2, 0, 0))
        if _fits(value, console.width - indent - most - 2):
            line.add_column(width=most)
            line.add_row(Text(name, style="bold"), Text(value))
            console.print(Padding(line, (0, 0, 0, indent)))
        else:
            _show_indented(name, console, indent, "bold")
            _show_indented(value, console, indent + 2)


def _show_indented(text: str, console: Console, indent: int, style: str = "") -> None:
    """Prints a text folded between words; one with a word that is too long, such as a path, is left
    to the terminal, so that it can be copied."""
    if _longest_word(text) > console.width - indent:
        console.print(Text(f"{' ' * indent}{text}", style=style), soft_wrap=True)
    else:
        console.print(Padding(Text(text, style=style), (0, 0, 0, indent)))


def _show_stacked(title: str, rows: _Rows, columns: Mapping[str, bool], console: Console) -> None:
    """A table whose rows are printed one below the other, without their empty cells."""
    _show_indented(printable(title), console, 0, "table.title")
    for row in rows:
        cells = [(printable(key), shown_value(row.get(key))) for key in columns]
        (key, text), *rest = [cell for cell in cells if cell[1]] or [("", "")]
        _show_indented(f"{key} {text}".strip(), console, 2, "bold")
        _show_facts(rest, console, indent=4)


def _fits(value: str, room: int) -> bool:
    """Whether a value fits beside its name: each of its words, and if it is folded some of them."""
    return _longest_word(value) <= room and (cell_len(value) <= room or room >= _FOLDED)


def _longest_word(text: str) -> int:
    """The width of the longest word; Chinese and Japanese are folded between any two characters."""
    words = ((word, cell_len(word)) for word in text.split())
    return max((2 if width > len(word) else width for word, width in words), default=0)


def _widths(columns: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """The width of the longest word and of the longest cell of each column."""
    return [(max(map(_longest_word, cells)), max(map(cell_len, cells))) for cells in columns]


def _room(widths: Sequence[tuple[int, int]], total: int) -> list[int]:
    """The widths of the columns of a table that is this wide in `total`; none if it must divide
    words."""
    spare = total - 3 * len(widths) - 1 - sum(least for least, _ in widths)
    if spare < 0:
        return []
    room = [least for least, _ in widths]
    order = sorted(range(len(widths)), key=lambda n: widths[n][1] - widths[n][0])
    for done, column in enumerate(order):
        least, most = widths[column]
        more = min(most - least, spare // (len(widths) - done))
        room[column], spare = least + more, spare - more
    return room


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


def _table(title: str, rows: _Rows, columns: Mapping[str, bool], widths: Sequence[int]) -> Table:
    table = Table(title=Text(printable(title)), box=SIMPLE_HEAD, title_justify="left")
    for (key, is_numeric), width in zip(columns.items(), widths, strict=True):
        justify: JustifyMethod = "right" if is_numeric else "left"
        table.add_column(Text(printable(key)), justify=justify, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown_value(row.get(key))) for key in columns))
    return table


def plain_columns(rows: _Rows) -> dict[str, bool]:
    """The columns of rows that hold no tables themselves and are not all empty, and whether all
    their values are numbers."""
    nested = {key for row in rows for key, value in row.items() if _is_nested(value)}
    return {
        key: all(isinstance(row.get(key), int | float | None) for row in rows)
        for key in rows[0]
        if key not in nested and any(row.get(key) is not None for row in rows)
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
    "blank", "identical", "other_prompt", "left_out", "duplicates", "conflicts", "overlap",
    "unseen_labels", "tag_count", "bad_tags", "bad_spans", "bad_marks",
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
        return {**shares, **{name: found[name] for name in _OF_WINDOWS if name in found}}
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
