"""Read tagged rows: tokens with tags, or text with spans, as a running text and its words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from llmkit.config.schema import DataConfig
from llmkit.data.readers import conll, files, formats, roles, tables
from llmkit.data.readers.columns import Columns
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.data.records.labelled import column_order, other_values, parsed_list
from llmkit.data.records.parts import Counts, RowProblem
from llmkit.data.records.tagging.tags import bio_tags
from llmkit.data.records.tagging.words import (
    CharacterSpan,
    MarkedWords,
    WordSpans,
    joined_words,
    marked_text,
    span_faults,
    split_words,
    stripped_span,
    words_within,
)
from llmkit.errors import DataError
from llmkit.progress import Say

_LABEL_KEYS = ("label", "type", "tag", "entity", "entity_group", "class")
_START_KEYS, _END_KEYS = ("start", "begin", "start_offset"), ("end", "stop", "end_offset")
_UNMARKED = frozenset(("", "-", "_", "O", "0", "0.0", "false", "*", "none"))
"""Values of a column of marks that mark nothing, in small letters but for `O`."""


class TaggedRow(NamedTuple):
    """One row of tagged words."""

    number: int
    """Number of the data row, or of the sentence, in its file, counted from 1."""
    path: str
    where: str
    text: str
    """The running text."""
    words: WordSpans
    tags: tuple[str, ...] | None
    """As written, or BIO for spans; None if blank."""
    mark: MarkedWords | None = None
    tokens: tuple[str, ...] | None = None
    """The words as given; None for a running text."""
    lines: Sequence[int] = ()
    """The line of each word of a CoNLL file."""
    problem: RowProblem | None = None
    n_widened: int = 0
    """Spans that were widened to whole words."""
    extra: Mapping[str, Any] = MappingProxyType({})
    """The other columns, by name or number."""
    named: Mapping[str, Any] = MappingProxyType({})
    """The column of the text or the tokens, by name."""
    order: tuple[str, ...] = ()
    """All columns but the tags, in the order of the table."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The running text alone."""
        return (self.text,)

    @property
    def label(self) -> tuple[str, ...] | None:
        """The tags."""
        return self.tags

    def read(self) -> tuple[str, WordSpans]:
        """The text as the model reads it, with the marked words enclosed, and its words."""
        if self.mark is None:
            return self.text, self.words
        return marked_text(self.text, self.words, self.mark)

    def refused(self, name: str, reason: str) -> TaggedRow:
        """The row with the reason why it cannot be used."""
        problem = RowProblem(name, reason, self.where, (self.path, self.number))
        return self._replace(problem=problem)


def read_tagged(
    found: Iterable[Source],
    data: DataConfig,
    *,
    labelled: bool = True,
    extra: bool = False,
    advance: Callable[[int], None] = lambda n_bytes: None,
    counts: Counts | None = None,
) -> Iterator[TaggedRow]:
    """The rows of tables or CoNLL files whose columns are resolved, in bounded memory.

    If rows need not be `labelled`, tags are None, and a line of plain text is a text. Raises
    DataError with file and row for values that are neither words nor tags nor spans.
    """
    counts = counts or Counts()
    for source in found:
        reading = Reading(data, advance)
        table = open_tagged(source, reading, labelled)
        if len(table.columns):
            yield from tagged_rows(table, data, str(source.path), labelled, extra, counts)
        counts.undecodable += reading.undecodable
        files.check_unchanged(source)


def resolve_tagged_columns(
    found: Sequence[Source],
    data: DataConfig,
    say: Say,
    labelled: bool = True,
    adapted: Callable[[Table], DataConfig] | None = None,
) -> DataConfig:
    """The data section with the columns resolved from the first table that has any; `adapted` is
    the data section to begin with, for that table."""
    for source in found:
        table = open_tagged(source, Reading(data, lambda n_bytes: None), labelled)
        if len(table.columns):
            given = data if adapted is None else adapted(table)
            return roles.resolve_tag_columns(table, str(source.path), given, say, labelled)
    return data


def open_tagged(source: Source, reading: Reading, labelled: bool) -> Table:
    """A source as a table; text without another format is CoNLL if it should be `labelled`, or if
    its name says so."""
    is_named = reading.data.format == "conll" or formats.is_conll_name(str(source.path))
    if (labelled or is_named) and conll.is_conll(source, reading, roles.TAGGED_NAMES):
        return conll.open_conll(source, reading)
    return tables.open_table(source, reading)


def tagged_rows(
    table: Table, data: DataConfig, path: str, labelled: bool, extra: bool, counts: Counts
) -> Iterator[TaggedRow]:
    """The rows of a table whose columns are resolved."""
    columns = table.columns
    (text,) = columns.find_all(data.text_column, roles.TEXT, path)
    label = columns.find_all(data.label_column, roles.LABEL, path) if labelled else ()
    mark = columns.find_all(data.mark_column, roles.MARKED_WORDS, path)
    used = (text, *label)
    rest = [number for number in range(len(columns)) if number not in used] if extra else []
    for record in table.records([*used, *mark, *rest]):
        if record.values is None:
            counts.blank_lines += 1
            continue
        try:
            row = _row(record, columns, path, (text, label, mark))
        except DataError as fault:
            raise tables.in_row(fault, record.number) from fault
        if extra:
            name = columns.label(text)
            given = row.text if row.tokens is None else list(row.tokens)
            row = row._replace(
                extra=other_values(record, columns, used, rest),
                named={name if isinstance(name, str) else "text": given},
                order=column_order(record, columns, [text], used),
            )
        yield row


def _row(
    record: Record,
    columns: Columns,
    path: str,
    numbers: tuple[int, Sequence[int], Sequence[int]],
) -> TaggedRow:
    text, label, mark = numbers
    value = _tokens_or_text(tables.field(record, columns, text), columns.address(text), record)
    written = _tags_or_spans(tables.field(record, columns, label[0]), record) if label else None
    if isinstance(value, str) and _are_tags(written):
        value = value.split()
    if isinstance(value, str):
        row = _of_text(value, written, record, path)
    else:
        row = _of_tokens(value, written, conll.are_spaced(record, columns), record, path)
        after = record.values[len(columns) :] if isinstance(record.values, list) else []
        row = row._replace(lines=after[0] if after else ())
    if not mark or row.problem:
        return row
    return _with_mark(row, tables.field(record, columns, mark[0]))


def _of_text(text: str, spans: Any, record: Record, path: str) -> TaggedRow:
    words = split_words(text)
    row = TaggedRow(record.number, path, record.where, text, words, None)
    if spans is None:
        return row
    if fault := next(span_faults(text, spans), None):
        return row.refused("bad_spans", fault)
    placed = [_placed(words, stripped_span(text, span)) for span in sorted(spans)]
    for before, here in pairwise(placed):
        if here.first < before.end:
            fault = f"two spans share the word {text[slice(*words[here.first])]!r}"
            return row.refused("bad_spans", fault)
    tags = bio_tags(len(words), [(each.first, each.end, each.label) for each in placed])
    return row._replace(tags=tags, n_widened=sum(each.is_widened for each in placed))


class _Placed(NamedTuple):
    first: int
    end: int
    label: str
    is_widened: bool


def _placed(words: WordSpans, span: CharacterSpan) -> _Placed:
    """The words that a span covers."""
    first, end = words_within(words, span.start, span.end)
    exact = (span.start, span.end) == (words[first, 0], words[end - 1, 1])
    return _Placed(first, end, span.label, not exact)


def _of_tokens(
    tokens: Sequence[str], tags: Any, spaced: list[bool] | None, record: Record, path: str
) -> TaggedRow:
    text, words = joined_words(tokens, spaced)
    row = TaggedRow(record.number, path, record.where, text, words, tags, tokens=tuple(tokens))
    if tags is None or len(tags) == len(tokens):
        return row
    reason = f"{len(tokens)} tokens and {len(tags)} tags"
    return row._replace(tags=None).refused("tag_count", reason)


def _tokens_or_text(value: Any, name: str | int, record: Record) -> str | list[str]:
    """The tokens or the text of a row; empty for null."""
    if value is None:
        return ""
    if isinstance(value, str):
        parsed = parsed_list(value)
        is_list = isinstance(parsed, list) and all(isinstance(each, str) for each in parsed)
        value = parsed if is_list and parsed else tables.cell_text(value, name, record.where)
    if isinstance(value, list):
        return [tables.cell_text(each, name, record.where) for each in value]
    return tables.cell_text(value, name, record.where)


def _are_tags(written: Any) -> bool:
    return isinstance(written, tuple) and bool(written) and isinstance(written[0], str)


def _tags_or_spans(value: Any, record: Record) -> tuple[Any, ...] | None:
    """The tags of a row as text, or its spans; None if blank."""
    if isinstance(value, str):
        parsed: Any = parsed_list(value)
        with suppress(ValueError, RecursionError):
            parsed = json.loads(value) if value.strip()[:1] == "[" else parsed
        value = value.split() or None if parsed is value else parsed
    if value is None:
        return None
    if not isinstance(value, list):
        raise _neither(f"is {type(value).__name__}", record)
    if all(isinstance(each, str | int | float) for each in value):
        return tuple(_tag(each, record) for each in value)
    return tuple(_span(each, record) for each in value)


def _tag(value: Any, record: Record) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise _neither(f"holds {value!r}", record)
    return str(int(value))


def _span(value: Any, record: Record) -> CharacterSpan:
    if isinstance(value, Mapping):
        found = [_first(value, keys) for keys in (_START_KEYS, _END_KEYS, _LABEL_KEYS)]
    else:
        found = list(value)[:3] if isinstance(value, list) else []
    numbers = [int(each) for each in found[:2] if isinstance(each, int | float) and each == each]
    if len(found) < 3 or len(numbers) < 2 or not isinstance(found[2], str) or not found[2].strip():
        raise _neither(f"holds {json.dumps(value, default=str)[:80]}", record)
    return CharacterSpan(numbers[0], numbers[1], found[2].strip())


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((value[key] for key in keys if key in value), None)


def _neither(what: str, record: Record) -> DataError:
    return DataError(
        f"the column of tags or spans {what}",
        where=record.where,
        next='give a list of tags, one for each token, or of spans such as {"start": 0, "end": 6, '
        f'"label": "PER"}}; {roles.LABEL} names another column',
    )


def _with_mark(row: TaggedRow, value: Any) -> TaggedRow:
    """The row with the words that a value marks: a word number, the offsets of a span in a text, or
    a value for each word."""
    found = _marked(row, parsed_list(value))
    if isinstance(found, MarkedWords):
        return row._replace(mark=found)
    return row._replace(tags=None).refused("bad_marks", found)


def _marked(row: TaggedRow, value: Any) -> MarkedWords | str:
    n_words = len(row.words)
    if isinstance(value, Mapping):
        value = [_first(value, _START_KEYS), _first(value, _END_KEYS)]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        number = int(value)
        if 0 <= number < n_words:
            return MarkedWords(number, number + 1)
        return f"the marked word {number} is none of the {n_words} words, counted from 0"
    if not isinstance(value, list):
        return f"{value!r} marks no word"
    if row.tokens is None and len(value) == 2 and all(isinstance(each, int) for each in value):
        first, end = words_within(row.words, *value)
        return MarkedWords(first, end) if first < end else f"no word at {value[0]}-{value[1]}"
    if len(value) != n_words:
        return f"{len(value)} marks and {n_words} words"
    chosen = [word for word, each in enumerate(value) if not _is_unmarked(each)]
    if not chosen or chosen[-1] - chosen[0] + 1 != len(chosen):
        return f"{len(chosen)} words are marked" + (", which are apart" if chosen else "")
    return MarkedWords(chosen[0], chosen[-1] + 1)


def _is_unmarked(value: Any) -> bool:
    text = str(value).strip()
    return value is None or text in _UNMARKED or text.lower() in _UNMARKED - {"O"}
