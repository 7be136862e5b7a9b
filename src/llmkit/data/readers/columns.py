"""Find the column of a table by its name, by its number, or because it is the only candidate."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import DataError

_TEXT = """text texts sentence sentences content body document doc review comment comment_text
    message msg sms tweet post utterance query"""
TEXT_NAMES = frozenset(_TEXT.split())
"""Usual names of a text column."""

_LABEL = """label labels category categories class target sentiment intent topic emotion emotions
    polarity rating stars score"""
LABEL_NAMES = frozenset(_LABEL.split())
"""Usual names of a label column."""

_NUMBERING = frozenset("id idx index guid uuid row_id".split())
"""Names of columns that number the rows and are not labels."""

PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
"""Usual names of the two columns of a text pair."""

ColumnNumbers = tuple[int, ...]

_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """The columns of a table, counted from 0."""

    names: tuple[str, ...] | None
    """None where the table has no header."""
    first: tuple[str, ...]
    """The first row, which shows the content of columns without names."""
    keyed: bool = False
    """Whether a row holds its values by name rather than by number."""

    def __len__(self) -> int:
        return len(self.names if self.names is not None else self.first)

    def __str__(self) -> str:
        """The columns, formatted for a message."""
        if self.names is not None:
            shown = [f"{number} {name[:40]!r}" for number, name in enumerate(self.names)]
        else:
            shown = [f"{number} (first {value[:40]!r})" for number, value in enumerate(self.first)]
        return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")

    def address(self, number: int) -> int | str:
        """The index into a row that gives the value of a column."""
        return self.names[number] if self.keyed and self.names is not None else number

    def label(self, number: int) -> str | int:
        """The name of a column in a config, or its number if the name is ambiguous or missing."""
        if self.names is None or not self.names[number] or self.names.count(self.names[number]) > 1:
            return number
        return self.names[number]

    def find(self, wanted: str | int, key: str, where: str) -> int:
        """The number of the column that a config key names; raises DataError if there is none."""
        names = self.names or ()
        if isinstance(wanted, int):
            if wanted < len(self):
                return wanted
            problem = f"{key} is {wanted}, and the last column is number {len(self) - 1}"
        elif names.count(wanted) == 1:
            return names.index(wanted)
        elif self.names is None:
            problem = f"{key} is {wanted!r}, and the table has no header, so no column has a name"
        elif wanted in names:
            problem = f"{wanted!r} is the name of {names.count(wanted)} columns"
        else:
            near = difflib.get_close_matches(wanted, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problem = f"no column is called {wanted!r}{hint}"
        raise self.fault(problem, key, where)

    def find_all(self, wanted: Any, key: str, where: str) -> ColumnNumbers:
        """The numbers of the columns that a config key names: none, one or several."""
        several = wanted if isinstance(wanted, tuple) else () if wanted is None else (wanted,)
        return tuple(self.find(each, key, where) for each in several)

    def fault(self, problem: str, key: str, where: str) -> DataError:
        """The error for a missing or ambiguous column; it lists the existing ones."""
        return DataError(
            problem,
            where=f"{key}; {where}",
            next=f"{key}=NAME, or a number from 0; the columns are {self}",
        )


def guess(
    columns: Columns,
    given: tuple[ColumnNumbers, ColumnNumbers],
    rows: Callable[[], Sequence[Sequence[str]]],
) -> tuple[ColumnNumbers, ColumnNumbers]:
    """The text and label columns; those not `given` are empty unless there is only one candidate.

    A column is recognised by a usual name, by being the only one left, or, of two columns, by
    values that repeat in these first rows, which labels do.
    """
    text, label = given
    if not label:
        label = only_column(columns, LABEL_NAMES, without=text)
    if not text:
        text = guess_text(columns, label)
    if text and not label:
        left = [number for number in _candidates(columns) if number not in text]
        sole = len(left) == 1 and _names(columns)[left[0]] not in _NUMBERING
        label = (left[0],) if sole and not usual_labels(columns) else ()
    if not text and len(_candidates(columns)) == 2:
        again = [number for number in _candidates(columns) if _repeats(rows(), number)]
        if len(again) == 1:
            return guess_text(columns, again), tuple(again)
    return text, label


def guess_text(columns: Columns, label: Sequence[int]) -> ColumnNumbers:
    """The text column, or the two of a pair, if there is only one candidate besides the label."""
    names = _names(columns)
    for pair in PAIR_NAMES:
        if all(names.count(name) == 1 for name in pair):
            return tuple(names.index(name) for name in pair)
    left = [number for number in _candidates(columns) if number not in label]
    usual = only_column(columns, TEXT_NAMES, without=label)
    return usual or ((left[0],) if len(left) == 1 else ())


def usual_labels(columns: Columns) -> ColumnNumbers:
    """The columns with a usual name for labels."""
    return tuple(n for n, name in enumerate(_names(columns)) if name in LABEL_NAMES)


def looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of these rows is a header.

    It is if it holds only short words, and one is a usual name or none appears again below.
    """
    names = [name.strip() for name in rows[0]]
    named = [name for name in names if name]
    if not named or not all(map(_is_name, named)):
        return False
    if {name.lower() for name in named} & (TEXT_NAMES | LABEL_NAMES):
        return True
    return len(set(named)) == len(named) and not any(
        name and name in {row[number].strip() for row in rows[1:] if number < len(row)}
        for number, name in enumerate(names)
    )


def _is_name(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        words = text.split()
        return len(text) <= 40 and len(words) <= 4 and "\n" not in text and text[-1] not in ".!?"
    return False


def _names(columns: Columns) -> list[str]:
    return [name.strip().lower() for name in columns.names or [""] * len(columns)]


def _candidates(columns: Columns) -> list[int]:
    """The columns that have a name, or all where the table has no header."""
    return [n for n in range(len(columns)) if columns.names is None or columns.names[n].strip()]


def only_column(
    columns: Columns, names: Collection[str], without: Sequence[int] = ()
) -> ColumnNumbers:
    """The only column that has one of these names."""
    found = [n for n, name in enumerate(_names(columns)) if name in names and n not in without]
    return (found[0],) if len(found) == 1 else ()


def _repeats(rows: Sequence[Sequence[str]], number: int) -> bool:
    """Whether the values of the column appear at least twice on average."""
    values = [row[number] for row in rows]
    return len(values) > 1 and 2 * len(set(values)) <= len(values)
