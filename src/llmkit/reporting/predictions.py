"""Write predictions as JSON lines or CSV: to stdout as they are made, or atomically to a file."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from llmkit.config.schema import PredictConfig
from llmkit.errors import WriteError
from llmkit.reporting.format import many
from llmkit.storage import atomic, outputs, resumable
from llmkit.storage.resumable import ResultParts
from llmkit.storage.strict_json import json_text, plain

DIGITS = 6
"""Decimals of a probability."""

UNSURE = 0.6
"""A label with a lower probability deserves a review."""

LISTED = 20
"""Maximum number of labels whose counts are listed in a sentence."""


class Counted(NamedTuple):
    """What is counted of a prediction."""

    label: str | float | list[str] | None
    """The label, the labels, or the number; None if the model's outputs are NaN or infinite."""
    sure: float | None
    """The probability of one label, or of a row's tags."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a classifier for one row."""

    texts: tuple[str, ...]
    label: str | float | list[str] | None
    """The most probable label; every label at or above the threshold; or a regression's number.
    None if the model's outputs are NaN or infinite."""
    probabilities: Mapping[str, float | None]
    """Probability of each label; empty for a regression."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the input that are repeated besides the texts."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """The same with the texts, in the order and under the names of the input."""

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        text = self.texts[0] if len(self.texts) == 1 else list(self.texts)
        found = {"text": text, "label": self.label, "probabilities": dict(self.probabilities)}
        return {**found, "columns": dict(self.columns)} if self.columns else found

    def as_cells(self) -> dict[str, Any]:
        """The prediction as a table row: the columns of the input, then the label and a column for
        each probability; a number has `problem_type` instead, which identifies the file.

        An input column with the name of an output column is renamed with the prefix `input_`, as
        often as needed for a free name.
        """
        pair = len(self.texts) > 1
        texts = {f"text{n if pair else ''}": text for n, text in enumerate(self.texts, 1)}
        own = {"label": _cell(self.label)}
        own |= {f"probability_{name}": value for name, value in self.probabilities.items()}
        if not self.probabilities:
            own[outputs.PROBLEM_TYPE] = outputs.NUMBER_KIND
        return with_input_columns(dict(self.cells) or {**self.columns, **texts}, own)

    @property
    def counted(self) -> Counted:
        """What is counted."""
        chances = [chance or 0.0 for chance in self.probabilities.values()]
        is_single = isinstance(self.label, str) and chances
        return Counted(self.label, max(chances) if is_single else None)


@dataclass(frozen=True)
class TaggedPrediction:
    """The prediction of a tagger for one row."""

    text: str
    spans: list[dict[str, Any]] | None
    """Each with `start`, `end`, `label`, `text` and `probability`; None if the model's outputs are
    NaN or infinite."""
    probability: float | None
    """That of the least certain tag."""
    tokens: tuple[str, ...] | None = None
    """The words as given; None for a running text."""
    tags: tuple[str, ...] | None = None
    """The tag of each token."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the input that are repeated besides the text."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """The same with the text, in the order and under the names of the input."""

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        found: dict[str, Any] = {"text": self.text}
        if self.tokens is not None:
            found |= {"tokens": list(self.tokens), "tags": self.tags and list(self.tags)}
        found |= {"spans": self.spans, "probability": self.probability}
        return {**found, "columns": dict(self.columns)} if self.columns else found

    def as_cells(self) -> dict[str, Any]:
        """The prediction as a table row: the columns of the input, then the tags of tokens, the
        spans and the probability; lists are JSON. Columns are renamed as those of `Prediction`."""
        own: dict[str, Any] = {} if self.tags is None else {"tags": _cell(list(self.tags))}
        own |= {"spans": _cell(self.spans), "probability": self.probability}
        return with_input_columns(dict(self.cells) or {**self.columns, "text": self.text}, own)

    @property
    def counted(self) -> Counted:
        """What is counted."""
        labels = None if self.spans is None else [span["label"] for span in self.spans]
        return Counted(labels, self.probability)


def with_input_columns(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the input, renamed where they have the name of an output column, then
    these."""
    repeated = {}
    for name, value in given.items():
        new = name
        while new in own or (new != name and new in given):
            new = f"input_{new}"
        repeated[new] = _cell(plain(value))
    return {**repeated, **own}


class AnyPrediction(Protocol):
    """What is written of the prediction for one row."""

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""

    def as_cells(self) -> dict[str, Any]:
        """The prediction as a table row."""

    @property
    def counted(self) -> Counted | None:
        """What is counted, if anything is."""


class Numbers:
    """The count, mean and range of numbers that are added one by one."""

    def __init__(self) -> None:
        self.count, self.sum, self.low, self.high = 0, 0.0, math.inf, -math.inf

    def add(self, number: float) -> None:
        """Adds a number."""
        self.count, self.sum = self.count + 1, self.sum + number
        self.low, self.high = min(self.low, number), max(self.high, number)

    def summary(self) -> dict[str, float]:
        """`mean`, `min` and `max`, rounded like predictions."""
        found = {"mean": self.sum / self.count, "min": self.low, "max": self.high}
        return {name: round(value, DIGITS) for name, value in found.items()}


def counts_sentence(summary: Mapping[str, Any]) -> str:
    """The summary of a `Writer` in a line: `positive 112, negative 88; 14 rows below 0.6`."""
    lines = []
    if numbers := summary.get("numbers"):
        lines.append("mean {mean:.4g}, from {min:.4g} to {max:.4g}".format_map(numbers))
    labels = list(summary.get("labels", {}).items())
    parts = [f"{label} {count:,}" for label, count in labels[:LISTED]]
    if len(labels) > LISTED:
        parts.append(f"{many(len(labels) - LISTED, 'other label')}")
    if parts:
        lines.append(", ".join(parts))
    if unsure := summary.get(f"below_{UNSURE}"):
        lines.append(f"{many(unsure, 'row')} below {UNSURE}")
    if unlabelled := summary.get("without_label"):
        lines.append(f"{many(unlabelled, 'row')} without a label")
    if broken := summary.get("non_finite"):
        lines.append(f"{many(broken, 'row')} with outputs that are NaN or infinite")
    return "; ".join(lines)


def without_counts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `predict` without what `counts_sentence` states."""
    counts = ("labels", "numbers", "without_label", "non_finite", f"below_{UNSURE}")
    return {name: value for name, value in figures.items() if name not in counts}


def _cell(value: Any) -> Any:
    return json_text(value) if isinstance(value, list | dict) else value


class Writer:
    """Writes predictions to stdout, appends them to the parts of a file, or collects them."""

    def __init__(
        self,
        format: str,
        parts: ResultParts | None = None,
        collected: list[dict[str, Any]] | None = None,
    ) -> None:
        self.format, self.parts, self.collected = format, parts, collected
        self.rows = parts.results if parts else 0
        """Number of predictions written so far."""
        self.header: list[str] = []
        self.dropped_columns: Counter[str] = Counter()
        """Columns that the first row of a CSV lacks, with the number of rows that have them."""
        self.labels: Counter[str] = Counter()
        """How often each label was given."""
        self.unsure = 0
        """Number of predictions whose label has a probability below UNSURE."""
        self.unlabelled = 0
        """Number of rows for which no label reaches the threshold of a multi-label problem."""
        self.non_finite = 0
        """Number of rows whose outputs are NaN or infinite."""
        self.has_texts = False
        """Whether the predictions are generated texts, of which nothing is counted."""
        self.numbers = Numbers()
        """The predicted numbers of a regression."""
        if parts and self.rows:
            self._count_existing(resumable.parts_of(parts.path))

    def summary(self) -> dict[str, Any]:
        """The count of each label, of predictions below UNSURE, and of rows without a label; or the
        mean and the range of numbers. Rows without a prediction are counted apart."""
        if self.has_texts:
            return {}
        rest = {"without_label": self.unlabelled, "non_finite": self.non_finite}
        counts = {name: count for name, count in rest.items() if count}
        if self.numbers.count:
            return {"numbers": self.numbers.summary(), **counts}
        return {"labels": dict(self.labels.most_common()), f"below_{UNSURE}": self.unsure, **counts}

    def _count_existing(self, path: Path) -> None:
        """Counts the labels of the predictions that an interrupted job has written."""
        with path.open(encoding="utf-8", newline="") as file:
            if self.format != "csv":
                for row in map(json.loads, file):
                    self._count(_json_counted(row))
                return
            csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
            table = csv.DictReader(file)
            self.header = list(table.fieldnames or ())
            if self.header[-1:] == [outputs.WRITTEN]:
                self.has_texts = True
                return
            if self.header[-2:] == list(outputs.TAGGED):
                for row in table:
                    spans, sure = json.loads(row["spans"] or "null"), row["probability"]
                    self._count(_json_counted({"spans": spans, "probability": float(sure or 0)}))
                return
            own = self.header[self.header.index("label") + 1 :]  # after the columns of the input
            chances = [name for name in own if name != outputs.PROBLEM_TYPE]
            names = {name.removeprefix("probability_") for name in chances}
            for row in table:
                several = chances and row["label"] not in names
                label = json.loads(row["label"] or "null") if several else row["label"] or None
                values = {name: float(row[name] or 0) for name in chances}
                label = label if chances or label is None else float(label)
                self._count(Prediction((), label, values).counted)

    def _count(self, counted: Counted | None) -> None:
        if counted is None:
            self.has_texts = True
            return
        label, sure = counted
        if label is None:
            self.non_finite += 1
            return
        self.unsure += sure is not None and sure < UNSURE
        if isinstance(label, list):
            self.labels.update(label)
            self.unlabelled += not label
        elif isinstance(label, str):
            self.labels[label] += 1
        else:
            self.numbers.add(label)

    def write(self, predictions: Sequence[AnyPrediction]) -> None:
        """Writes and flushes predictions."""
        if self.collected is not None:
            self.collected += [each.as_json() for each in predictions]
        else:
            lines = self._csv(predictions) if self.format == "csv" else _json_lines(predictions)
            self._put(lines, len(predictions))
        self.rows += len(predictions)
        for each in predictions:
            self._count(each.counted)

    def _put(self, lines: str, count: int) -> None:
        if self.parts is None:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            self.parts.add(lines, count)

    def _csv(self, predictions: Sequence[AnyPrediction]) -> str:
        rows: list[list[Any]] = []
        for each in predictions:
            cells = each.as_cells()
            if not self.header:
                self.header = list(cells)
                rows.append(self.header)
            self.dropped_columns.update(name for name in cells if name not in self.header)
            rows.append([cells.get(name, "") for name in self.header])
        return "".join(map(_csv_line, rows))


def _csv_line(cells: Sequence[Any]) -> str:
    """A row of a table. Python quotes a value with a carriage return, which many readers take for
    the end of a row, only if it is part of the terminator."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _json_counted(row: Mapping[str, Any]) -> Counted | None:
    """What is counted of a prediction that was written as JSON."""
    if outputs.WRITTEN in row:
        return None
    if "spans" in row:
        return TaggedPrediction("", row["spans"], row["probability"]).counted
    return Prediction((), row["label"], row["probabilities"]).counted


def _json_lines(predictions: Sequence[AnyPrediction]) -> str:
    lines = (json_text(each.as_json()) for each in predictions)
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def open_predictions(
    settings: PredictConfig,
    made_with: Mapping[str, Any],
    say: Callable[[str], None],
    collected: list[dict[str, Any]] | None = None,
) -> Iterator[Writer]:
    """Opens a writer to the output: a file that gets its name when all is written; without one, the
    list `collected` or stdout.

    `made_with` is all that the predictions depend on: those of an interrupted job with an equal one
    are kept. Raises WriteError when writing fails; an earlier file of that name is kept then.
    """
    if settings.output is None:
        yield Writer(output_format(settings), collected=collected)
        return
    with resumable.open_result_parts(Path(settings.output), made_with, say) as parts:
        yield Writer(output_format(settings), parts)


def output_format(settings: PredictConfig) -> str:
    """`jsonl` or `csv`: as configured, or for `auto` by the suffix of the output file."""
    if settings.format != "auto":
        return settings.format
    return "csv" if (settings.output or "").endswith(".csv") else "jsonl"


def check_predictions_file(settings: PredictConfig) -> None:
    """Raises WriteError, before any work, if the output cannot be written, or is an existing file
    without predictions."""
    if settings.output is None:
        return
    path = Path(settings.output)
    atomic.check_writable(path)
    try:
        ours = not path.exists() or (path.is_file() and _may_be_replaced(path))
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    if not ours:
        raise WriteError(
            "the file exists, and does not hold predictions",
            where=f"predict.output={path}",
            next="choose another file, or remove this one",
        )


def _may_be_replaced(path: Path) -> bool:
    return path.stat().st_size == 0 or outputs.holds_predictions(path)
