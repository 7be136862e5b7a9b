"""The labels of a data set: their kind, ordered names and class numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files
from llmkit.data.readers.decode import Reading, lines
from llmkit.errors import ConfigError, DataError

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
"""The kinds of labels, with transformers' names."""

LARGEST_NUMBER = 1e30
"""Largest absolute value of a number to learn: weights are in float32, whose range ends at 3e38."""

Raw = str | tuple[str, ...]
"""A label as written in a table, without white space around it; a tuple if a row has several."""

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
"""Matches a label that is a number."""


class KnownLabels(Protocol):
    """What reports and checks need to know of the labels of rows, or of the tags of words."""

    @property
    def kind(self) -> str:
        """What is learned, with transformers' name."""

    @property
    def classes(self) -> Sequence[str]:
        """The names whose rows, or entities, are counted; empty for a regression."""

    @property
    def from_file(self) -> bool:
        """Whether `data.label_names` names them."""

    def unknown(self, raw: Raw) -> list[str]:
        """The unknown labels of a row."""

    def present(self, raw: Raw) -> Sequence[str]:
        """The classes of a row, each as often as it has it."""

    def shown(self, raw: Raw) -> str:
        """The label of a row, for a message."""


class NamedOutputs:
    """The names of the outputs of a model, in order."""

    names: tuple[str, ...]
    from_file: bool

    def __len__(self) -> int:
        return len(self.names)

    def number(self, raw: str) -> int | None:
        """The number of a name as written in the data; None if it is unknown."""
        found = self._numbers.get(raw)
        if found is None and self.from_file and raw.isascii() and raw.isdigit():
            found = int(raw) if len(raw) < 10 and int(raw) < len(self) else None
        return found

    def name(self, raw: str) -> str:
        """The name of an output as written in the data."""
        number = self.number(raw)
        return raw if number is None else self.names[number]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


@dataclass(frozen=True)
class Labels(NamedOutputs):
    """The kind of the labels, and a name for each output of the model.

    Labels stay as written. Names are sorted, as numbers if all are numbers; those of
    `data.label_names` and of columns keep their order. A regression has one name: its column's.
    """

    kind: str
    names: tuple[str, ...]
    from_file: bool = False
    """Whether a number in the data is the index of a name."""

    @property
    def is_classes(self) -> bool:
        """Whether a row belongs to exactly one class."""
        return self.kind == SINGLE

    def encode(self, raw: Raw, where: str = "") -> int | float | list[int]:
        """The class number, the sorted class numbers, or the value of a label, depending on the
        kind; raises DataError if it is none of these."""
        if self.kind == REGRESSION:
            return _value(raw, where)
        if self.kind == MULTI:
            return sorted({self._known(label, where) for label in each(raw)})
        labels = each(raw)
        if len(labels) != 1:
            raise _not_one(labels, where)
        return self._known(labels[0], where)

    def unknown(self, raw: Raw) -> list[str]:
        """The unknown labels of a row."""
        if self.kind == REGRESSION:
            return []
        return [label for label in each(raw) if self.number(label) is None]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names whose rows are counted."""
        return () if self.kind == REGRESSION else self.names

    def present(self, raw: Raw) -> list[str]:
        """The names of the labels of a row; none for a regression."""
        return [] if self.kind == REGRESSION else [self.name(label) for label in each(raw)]

    def shown(self, raw: Raw) -> str:
        """The label of a row, for a message."""
        return ", ".join(sorted({self.name(label) for label in each(raw)}))

    def _known(self, raw: str, where: str) -> int:
        number = self.number(raw)
        if number is not None:
            return number
        near = difflib.get_close_matches(raw, self.names, 1)
        raise DataError(
            f"the label {raw!r} is unknown" + (f"; did you mean {near[0]!r}?" if near else ""),
            where=where,
            next=f"the {len(self)} labels are {listing(self.names)}",
        )


def of(data: DataConfig, raws: Collection[Raw], output: str) -> Labels:
    """The labels of a training set, from its distinct raw labels.

    `output` names the value of a regression. Lists of 0 and 1 have one label for each position,
    named by its number unless `data.label_names` gives a name.
    """
    kind = _kind(data, raws)
    if marks := 0 if kind == REGRESSION else indicated(raws, "data.train_files"):
        return _of_marks(data, kind, marks)
    if data.label_names is not None and kind != REGRESSION:
        return Labels(kind, names_of_file(data, data.label_names), from_file=True)
    if kind == REGRESSION:
        return Labels(kind, (output,))
    if columns := _several_columns(data):
        return Labels(kind, columns)
    return Labels(kind, tuple(ordered_names({label for raw in raws for label in each(raw)})))


def _of_marks(data: DataConfig, kind: str, marks: int) -> Labels:
    if data.label_names is None:
        return Labels(kind, tuple(map(str, range(marks))))
    names = names_of_file(data, data.label_names)
    if len(names) != marks:
        raise DataError(
            f"{data.label_names} has {len(names)} names, but rows have lists of {marks} labels",
            where="data.label_names",
            next=f"give {marks} names, one per line, in the order of the lists",
        )
    return Labels(kind, names, from_file=True)


def indicated(raws: Collection[Raw], where: str) -> int:
    """The length of the labels if they are lists of 0 and 1; 0 for other labels.

    Raises DataError if such lists differ in length.
    """
    lists = [raw for raw in raws if isinstance(raw, tuple)]
    if not lists or len(lists) < len(raws) or not all(set(raw) <= {"0", "1"} for raw in lists):
        return 0
    lengths = sorted(set(map(len, lists)))
    if lengths[1:] and any(len(set(raw)) < len(raw) for raw in lists):
        raise DataError(
            f"labels are lists of 0 and 1 of different lengths, from {lengths[0]} to {lengths[-1]}",
            where=where,
            next="give every row one 0 or 1 for each label, or lists of label names",
        )
    return lengths[0] if not lengths[1:] and lengths[0] > 1 else 0


def marked(raw: Raw, names: Sequence[str], single: bool) -> Raw:
    """The names of the labels marked by a list of 0 and 1; for `single`, the one name alone."""
    found = tuple(name for name, mark in zip(names, raw, strict=True) if mark == "1")
    return found[0] if single and len(found) == 1 else found


def each(raw: Raw) -> tuple[str, ...]:
    """The labels of a row as a tuple."""
    return raw if isinstance(raw, tuple) else (raw,)


def listing(names: Iterable[str], most: int = 10) -> str:
    """The first names, formatted for a message."""
    shown = list(names)
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(repr(name[:60]) for name in shown[:most]) + more


def _kind(data: DataConfig, raws: Collection[Raw]) -> str:
    """The kind from the config, or detected: several labels in a row, fractions, or neither."""
    several = _several_columns(data) is not None or data.label_separator is not None
    if data.problem_type == "auto":
        if several or any(isinstance(raw, tuple) for raw in raws):
            return MULTI
        return REGRESSION if _are_fractions([str(raw) for raw in raws]) else SINGLE
    if several and data.problem_type != MULTI:
        key = "label_separator" if data.label_separator is not None else "label_column"
        raise ConfigError(
            f"data.{key} gives a row several labels, but data.problem_type is {data.problem_type}",
            where=f"data.{key}",
            next=f"remove data.{key} or data.problem_type",
        )
    return data.problem_type


def _several_columns(data: DataConfig) -> tuple[str, ...] | None:
    """The names of columns that hold one label each."""
    columns = data.label_column
    return tuple(map(str, columns)) if isinstance(columns, tuple) and columns[1:] else None


def _are_fractions(texts: Collection[str]) -> bool:
    """Whether all are numbers, and not all integers."""
    if not texts or not all(NUMBER.fullmatch(text) for text in texts):
        return False
    return not all(float(text).is_integer() for text in texts)


def ordered_names(names: Iterable[str]) -> list[str]:
    """The names sorted, as numbers if all are numbers."""
    texts = sorted(names)
    if all(NUMBER.fullmatch(text) for text in texts):
        return sorted(texts, key=float)
    return texts


def _value(raw: Raw, where: str) -> float:
    if isinstance(raw, str) and NUMBER.fullmatch(raw):
        if abs(value := float(raw)) <= LARGEST_NUMBER:
            return value
        raise DataError(
            f"the label {raw[:60]!r} is too large: numbers lie within {LARGEST_NUMBER:g} of 0",
            where=where,
            next="correct the row, or give the numbers in a larger unit",
        )
    raise DataError(
        f"the label {raw!r} is not numeric",
        where=where,
        next="correct the row, or data.problem_type=single_label_classification",
    )


def _not_one(labels: tuple[str, ...], where: str) -> DataError:
    return DataError(
        f"this row has {len(labels)} labels ({listing(labels)}), but a row has exactly one here"
        if labels
        else "this row has an empty list of labels, but a row has exactly one here",
        where=where,
        next="correct the row, or data.problem_type=multi_label_classification",
    )


def names_of_file(data: DataConfig, path: str) -> tuple[str, ...]:
    """The names in a file of `data.label_names`, one in each line; raises DataError for a line
    without a name, or with one that was given before."""
    key = "data.label_names"
    [source] = files.find([path], key)[:1]
    names = [line.strip() for line in lines(source, Reading(data, lambda n_bytes: None))]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            raise DataError(
                f"duplicate label name {name!r}" if name else "this line has no label name",
                where=f"{source.path}:{number + 1}",
                next=f"{key} is a file with one name per line",
            )
    return tuple(names)
