"""Read CoNLL files: a word and its columns in each line, and a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from llmkit.data.readers import delimited
from llmkit.data.readers.columns import Columns
from llmkit.data.readers.decode import Reading, lines
from llmkit.data.readers.delimited import Record, peek
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.errors import DataError

CONLL_U = tuple("id form lemma upos xpos feats head deprel deps misc".split())
"""The columns of CoNLL-U (Nivre et al. 2020), whose words may hold spaces."""

_DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"#\s*[\w.]+\s*=|#\s*newdoc|#\s*newpar")
_NUMBER, _WORD_NUMBER = re.compile(r"\d+([-.]\d+)?"), re.compile(r"\d+")
_NO_SPACE = "SpaceAfter=No"


def is_conll(source: Source, reading: Reading, names: frozenset[str]) -> bool:
    """Whether a file of text or TSV is CoNLL: its first line has none of the usual `names` of
    columns."""
    format = delimited.named_format(source, reading.data)
    if format != "tsv":
        return format in ("txt", "conll")
    lenient = Reading(reading.data.changed(errors="replace"), lambda n_bytes: None)
    first = next((line for line in lines(source, lenient) if line.strip()), "")
    found = {name.strip().lower() for name in first.split("\t")}
    given = {str(name) for name in delimited.wanted(reading.data)}
    return not found & (names | given)


def open_conll(source: Source, reading: Reading) -> Table:
    """The sentences of a CoNLL file as a table: each value is the list of a column's fields, and
    after the last column come the line numbers.

    Raises DataError with file and line for a line with fewer or more columns than the first.
    """
    sentences = _sentences(source, reading)
    some, records = peek(sentences, lambda record: len(record.values or ()))
    if not some:
        for _ in records:  # raises the error of the first line
            pass
        return Table("conll", Columns(None, ()), list, lambda _: iter(()))
    *columns, _ = some[0].values or [[]]
    first = tuple(fields[0] for fields in columns)
    names = CONLL_U if _is_conll_u(first) else None
    return Table("conll", Columns(names, first), lambda: some, lambda _: records)


def are_spaced(record: Record, columns: Columns) -> list[bool] | None:
    """Whether a space follows each word, as CoNLL-U notes; None for other files."""
    if columns.names != CONLL_U or not isinstance(record.values, list):
        return None
    return [_NO_SPACE not in field.split("|") for field in record.values[CONLL_U.index("misc")]]


def _sentences(source: Source, reading: Reading) -> Iterator[Record]:
    number, width, is_conll_u = 0, 0, False
    words: list[list[str]] = []
    places: list[int] = []
    for line_number, line in enumerate(chain(lines(source, reading), ["\n"]), 1):
        fields = _fields(line)
        if fields and fields[0] != _DOCUMENT and not (not words and _COMMENT.match(line)):
            if not width:
                width, is_conll_u = len(fields), _is_conll_u(fields)
            if len(fields) != width:
                raise _uneven(source, line_number, len(fields), width)
            # CoNLL-U also has lines for several words together, and for empty words.
            if not is_conll_u or _WORD_NUMBER.fullmatch(fields[0]):
                words.append(fields)
                places.append(line_number)
        elif not fields and words:
            number += 1
            columns = [*map(list, zip(*words, strict=True)), places]
            yield Record(number, f"{source.path}:{places[0]}", columns)
            words, places = [], []


def _is_conll_u(fields: Sequence[str]) -> bool:
    return len(fields) == len(CONLL_U) and _NUMBER.fullmatch(fields[0]) is not None


def _fields(line: str) -> list[str]:
    if not line.strip():
        return []
    return [each.strip() for each in line.split("\t")] if "\t" in line.strip() else line.split()


def _uneven(source: Source, line_number: int, found: int, wanted: int) -> DataError:
    return DataError(
        f"this line has {found} columns, and the first one {wanted}",
        where=f"{source.path}:{line_number}",
        next="every line needs the same columns, separated by spaces or tabs; a blank line ends a "
        "sentence",
    )
