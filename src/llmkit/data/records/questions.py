"""Questions with their contexts and answers, as they are read from SQuAD's JSON or columns."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, roles, tables
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.data.records.labelled import rows_of
from llmkit.data.records.labels import Raw, each
from llmkit.data.records.parts import Counts, Read, RowProblem
from llmkit.errors import DataError
from llmkit.progress import Say

ANSWERED, UNANSWERED = "answered", "unanswered"
"""What a question may be in its context."""

NO_TEXT = ("",)
"""The texts of the answers of a question that its context does not answer."""

_START_KEYS = ("answer_start", "start")


class Answer(NamedTuple):
    """The text of the answer, as in the context."""

    start: int
    """The offset of its first character."""
    text: str


class QuestionRow(NamedTuple):
    """One question with its context."""

    number: int
    """Number of the question in its file, counted from 1."""
    path: str
    texts: tuple[str, ...]
    """The question and the context."""
    label: tuple[str, ...] | None
    """The texts of its answers; one empty text if the context has none, None if blank."""
    starts: tuple[int, ...] = ()
    problem: RowProblem | None = None
    extra: Mapping[str, Any] = MappingProxyType({})
    """The columns besides question and context."""
    named: Mapping[str, Any] = MappingProxyType({})
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What reports and checks know of the answers of a data set."""

    classes: tuple[str, ...]
    """`answered`, and `unanswered` if the training data has such questions."""

    kind = "question_answering"
    from_file = False

    def unknown(self, raw: Raw) -> list[str]:
        """No answer is unknown."""
        return []

    def present(self, raw: Raw) -> list[str]:
        """Whether the question has an answer."""
        return [UNANSWERED if raw == NO_TEXT else ANSWERED]

    def shown(self, raw: Raw) -> str:
        """The answers of a row, for a message."""
        return " | ".join(dict.fromkeys(each(raw)))


@dataclass(frozen=True)
class QuestionTable:
    """Questions in memory."""

    texts: Sequence[tuple[str, ...]]
    """The question and the context of each row."""
    answers: Sequence[tuple[Answer, ...]]
    """[rows]; empty for a question that its context does not answer."""
    labels: Answers
    places: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sides(self) -> list[tuple[str, ...]]:
        """[rows], the contexts: their questions stay on one side when rows are held out."""
        return [(context,) for _, context in self.texts]

    def strata(self) -> NDArray[np.int64]:
        """[rows], whether each has an answer."""
        return np.array([bool(found) for found in self.answers], dtype=np.int64)

    def counts(self) -> dict[str, Any]:
        """The number of questions with and without answer, and of contexts."""
        answered = int(self.strata().sum())
        numbers = {ANSWERED: answered, UNANSWERED: len(self) - answered}
        classes = {name: numbers[name] for name in self.labels.classes}
        return {"rows": len(self), "classes": classes, "contexts": len(set(self.sides))}

    @property
    def fingerprint(self) -> str:
        """The sha256 of questions, contexts and answers, in order."""
        whole = hashlib.sha256()
        for row in zip(self.texts, self.answers, strict=True):
            whole.update(json.dumps(row).encode())
        return whole.hexdigest()

    def part(self, chosen: NDArray[np.bool_]) -> QuestionTable:
        """The chosen rows, in order."""
        rows = np.flatnonzero(chosen).tolist()
        return QuestionTable(
            [self.texts[row] for row in rows],
            [self.answers[row] for row in rows],
            self.labels,
            [self.places[row] for row in rows],
        )


def reader(data: DataConfig, labelled: bool = True) -> Read[QuestionRow]:
    """Reads the questions of files whose columns are resolved."""

    def read(
        found: Iterable[Source], advance: Callable[[int], None], counts: Counts
    ) -> Iterator[QuestionRow]:
        for source in found:
            reading = Reading(data, advance)
            table = open_questions(source, reading)
            if len(table.columns):
                yield from question_rows(table, data, str(source.path), labelled, counts)
            counts.undecodable += reading.undecodable
            files.check_unchanged(source)

    return read


def open_questions(source: Source, reading: Reading) -> Table:
    """A source as a table with a question in each row; SQuAD's nested articles are unfolded."""
    table = tables.open_table(source, reading)
    names = list(table.columns.names or ())
    if "data" not in names or "question" in names:
        return table
    records = list(_unfolded(table.records([names.index("data")]), str(source.path)))
    return tables.of_records("jsonl", records)


def _unfolded(records: Iterable[Record], path: str) -> Iterator[Record]:
    number = 0
    for record in records:
        whole = record.values if isinstance(record.values, dict) else {}
        for article in _list_of(whole.get("data"), record.where):
            for paragraph in _list_of(article.get("paragraphs"), record.where):
                for asked in _list_of(paragraph.get("qas"), record.where):
                    number += 1
                    answers = [] if asked.get("is_impossible") else asked.get("answers")
                    row = {**asked, "context": paragraph.get("context"), "answers": answers}
                    row.pop("plausible_answers", None)
                    yield Record(number, f"{path} question {asked.get('id', number)}", row)


def _list_of(value: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value
    raise DataError(
        "this is not the form of SQuAD: data, paragraphs and qas are lists of objects",
        where=where,
        next="give rows with the columns question, context and answers instead",
    )


def resolve_question_columns(
    found: Sequence[Source], data: DataConfig, say: Say, labelled: bool = True
) -> DataConfig:
    """The data section with the columns resolved from the first table that has any."""
    for source in found:
        table = open_questions(source, Reading(data, lambda n_bytes: None))
        if len(table.columns):
            return roles.resolve_answer_columns(table, str(source.path), data, say, labelled)
    return data


def question_rows(
    table: Table, data: DataConfig, path: str, labelled: bool, counts: Counts
) -> Iterator[QuestionRow]:
    """The questions of a table whose columns are resolved."""
    columns = table.columns
    numbers = columns.find_all(data.label_column, roles.LABEL, path) if labelled else ()
    name_of = columns.address if columns.keyed else columns.label
    names = [str(name_of(number)) for number in numbers]
    for row in rows_of(table, data, path, False, True, counts):
        made = QuestionRow(
            row.number, path, row.texts, None, (), None, row.extra, row.named, row.order
        )
        if labelled:
            values = [row.extra.get(name) for name in names]
            made = _answered(made, *values)
        yield made


def _answered(row: QuestionRow, value: Any, start: Any = None) -> QuestionRow:
    """The row with the answers of its columns, or with the reason why it cannot be used."""
    given = _given_answers(value, start)
    if given is None:
        return row
    if not given:
        return row._replace(label=NO_TEXT)
    starts, context = [], row.texts[1]
    for text, begin in given:
        found = _place(context, text, begin)
        if isinstance(found, str):
            where = f"{row.path} row {row.number}"
            problem = RowProblem("bad_answers", found, where, (row.path, row.number))
            return row._replace(problem=problem)
        starts.append(found)
    return row._replace(label=tuple(str(text) for text, _ in given), starts=tuple(starts))


def _given_answers(value: Any, start: Any) -> list[tuple[Any, Any]] | None:
    """The texts and starts of answers as written: a text, a list of answers, or SQuAD's dict of
    lists; None if blank."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value.strip())
    if isinstance(value, Mapping):
        starts = next((value[key] for key in _START_KEYS if key in value), None)
        texts = value.get("text")
        if isinstance(texts, list):
            starts = starts if isinstance(starts, list) else [None] * len(texts)
            return list(zip(texts, [*starts, *[None] * len(texts)], strict=False))
        value, start = texts, starts
    if isinstance(value, list):
        found = [_given_answers(one, None) or [] for one in value]
        return [answer for some in found for answer in some]
    if value is None:
        return None
    return [(value, start)] if value != "" else []


def _place(context: str, text: Any, start: Any) -> int | str:
    """The offset of the answer in the context, or what is wrong with it."""
    if not isinstance(text, str) or not text.strip():
        return f"an answer is {text!r}"
    places = [at for at in range(len(context)) if context.startswith(text, at)]
    if not places:
        return f"the answer {text[:60]!r} is not in its context"
    if start is None or start == "":
        if len(places) == 1:
            return places[0]
        return f"{text[:60]!r} occurs {len(places)} times in its context: give its start"
    if str(start).strip().isdigit() and int(start) in places:
        return int(start)
    near = ", ".join(map(str, places[:3]))
    return f"the answer {text[:60]!r} is at {near} in its context, not at {start}"
