"""Rows that are JSON objects: one in each line, or in a list or one after another over lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from llmkit.data.delimited import Record
from llmkit.data.reading import CHUNK, LONGEST_LINE, Reading, chunks, lines, too_long
from llmkit.data.sources import Source
from llmkit.errors import DataError

_SPACE, _AFTER, _IN_LIST = map(re.compile, (r"\s*", r"(\s)*", r"[\s,]*"))
_EXAMPLE = '{"text": "..."}'


def by_line(source: Source, reading: Reading) -> Iterator[Record]:
    """The objects of a file with one in each line; blank lines are not rows."""
    number = 0
    for line_number, line in enumerate(lines(source, reading), 1):
        where = f"{source.path}:{line_number}"
        if not line.strip():
            yield Record(0, where, None)
            continue
        number += 1
        yield Record(number, where, parsed(line, where))


def parsed(line: str, where: str) -> dict[str, Any]:
    """The object that a line is; raises DataError with its place for one that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(
            f"this line is not JSON: {fault}",
            where=where,
            next="each line of a .jsonl file is one JSON object",
        ) from fault
    if not isinstance(row, dict):
        raise DataError(
            f"this line holds a JSON {type(row).__name__}, not an object",
            where=where,
            next=f"each line of a .jsonl file is one JSON object such as {_EXAMPLE}",
        )
    return row


def spanning(source: Source, reading: Reading) -> Iterator[Record]:
    """The objects of a JSON list, or objects one after another, whatever lines they take."""
    held = None
    for number, (row, line) in enumerate(_values(source, reading), 1):
        where = f"{source.path}:{line}"
        if not isinstance(row, dict):
            raise DataError(
                f"element {number} is a JSON {type(row).__name__}, not an object",
                where=where,
                next=f"a list of rows holds objects such as {_EXAMPLE}",
            )
        if held:
            yield held
        held = Record(number, where, row)
    if held and held.number == 1 and isinstance(held.values, dict):
        _refuse_columns(held.values, held.where)
    if held:
        yield held


def _refuse_columns(row: dict[str, Any], where: str) -> None:
    """Raises DataError for a file that is one object of lists or objects, such as columns."""
    if row and all(isinstance(value, list | dict) for value in row.values()):
        raise DataError(
            f"this file is one JSON object with {', '.join(map(repr, list(row)[:5]))}, not rows",
            where=where,
            next="write a list of objects, or one object in each line (in pandas: "
            "to_json(FILE, orient='records', lines=True)); data.format=txt reads it as plain text",
        )


def _values(source: Source, reading: Reading) -> Iterator[tuple[Any, int]]:
    """The values of a list, or those that stand one after another, each with its line."""
    decoder, parts = json.JSONDecoder(), chunks(source, reading)
    text, at, line = "", 0, 1
    between = _SPACE
    while True:
        space = between.match(text, at)
        assert space is not None
        line, at = line + space[0].count("\n"), space.end()
        if at == len(text):
            text, at = next(parts, ""), 0
            if text:
                continue
            if between is _IN_LIST:
                raise _broken(source, line, "the file ends inside its list")
            return
        if between is _SPACE:
            between = _IN_LIST if text[at] == "[" else _AFTER
            at += between is _IN_LIST
        elif between is _IN_LIST and text[at] == "]":
            between, at = _AFTER, at + 1
        else:
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as fault:
                if len(text) - at > LONGEST_LINE:
                    raise too_long(f"{source.path}:{line}") from fault
                more = "".join(islice(parts, max(1, (len(text) - at) // CHUNK)))
                if not more:
                    raise _broken(source, line, str(fault)) from fault
                text, at = text[at:] + more, 0
                continue
            yield value, line
            line, at = line + text.count("\n", at, end), end


def _broken(source: Source, line: int, fault: str) -> DataError:
    return DataError(
        f"what begins here is not JSON: {fault}",
        where=f"{source.path}:{line}",
        next="correct it, or data.format=txt if the file is plain text",
    )
