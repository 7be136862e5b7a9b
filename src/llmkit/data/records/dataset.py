"""Load a labelled data set: read, checked and split for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.encoded import LabelledTable, targets
from llmkit.data.readers import roles
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import checks, labels, splits
from llmkit.data.records.findings import Findings, find_unusual_rows, row_report
from llmkit.data.records.labelled import Row, read_rows
from llmkit.data.records.labels import REGRESSION, KnownLabels, Labels
from llmkit.data.records.parts import (
    Part,
    Read,
    filled,
    rows_of_files,
    rows_of_parts,
    training_sources,
)
from llmkit.data.records.splits import Texts
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError
from llmkit.progress import Say, Watch


class RowTable(Protocol):
    """What all tables of labelled rows, or of tagged words, can do."""

    @property
    def texts(self) -> Sequence[Texts]:
        """[rows], the texts as the model reads them."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def sides(self) -> Sequence[Texts]:
        """[rows], the texts that stay on one side when rows are held out."""

    def strata(self) -> NDArray[np.int64]:
        """[rows], the stratum of each row."""

    def counts(self) -> dict[str, Any]:
        """The number of rows, and of those of each class."""

    def part(self, chosen: NDArray[np.bool_]) -> Self:
        """The chosen rows, in order."""

    @property
    def fingerprint(self) -> str:
        """A hash of the rows and their labels, in order."""


T = TypeVar("T", bound=RowTable)
K = TypeVar("K", bound=KnownLabels)


@dataclass(frozen=True)
class Labelled(Generic[T, K]):
    """A data set of labelled rows, or of tagged words."""

    data: DataConfig
    """The data section with the columns resolved."""
    train: T
    validation: T | None
    """None if nothing is held out and no validation files are given."""
    test: T | None
    labels: K
    report: dict[str, Any]
    """The data report, for JSON output."""

    @property
    def held_out(self) -> dict[str, T]:
        """The tables that are not trained on, by the names of their parts."""
        parts = {"validation": self.validation, "test": self.test}
        return {name: table for name, table in parts.items() if table is not None}

    @property
    def tables(self) -> dict[str, T]:
        """All tables, by the names of their parts."""
        return {"train": self.train, **self.held_out}


def load_labelled(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Labelled[LabelledTable, Labels]:
    """Read, check and split all labelled data of a config.

    Texts that the given tokenizer encodes alike count as the same. Guesses are reported, unusual
    rows raise warnings. Raises the errors of reading, and DataError for data that would spoil the
    model and is not allowed by `data.allow`.
    """
    found = training_sources(sources)
    everything = list(chain.from_iterable(found.values()))
    data = roles.resolve_label_columns(everything, config.data, say)
    rows = rows_of_parts(sources, data, _reader(data), watch, say)
    parts = {name: filled(Part(name), each) for name, each in rows.items()}
    for part in parts.values():
        checks.check_rows(part)
        part.seen = as_seen(part.texts, tokenizer)
    raws = set(parts["train"].raws)
    known = labels.of(data, raws, str(data.label_column))
    if known.kind != REGRESSION and (marks := labels.indicated(raws, parts["train"].key)):
        named = "" if data.label_names else "; data.label_names=FILE gives their names"
        warn(f"labels are lists of 0 and 1: {marks} labels, named by their position{named}")
        for part in parts.values():
            _name_marks(part, known)
    checks.check_training_rows(parts["train"], known)
    columns = {"text": data.text_column, "label": data.label_column}
    faults = list(checks.faults(parts, known, bool(_fraction_to_split(data, parts))))
    read = ReadParts(data.changed(problem_type=known.kind), parts, known, columns, faults)
    read.refuse()
    tables = {name: table(part, known) for name, part in parts.items()}
    return finished(read, tables, config.seed, tokenizer, warn)


def _reader(data: DataConfig) -> Read[Row]:
    return lambda found, advance, counts: read_rows(
        found, data, extra=False, advance=advance, counts=counts
    )


@dataclass(frozen=True)
class ReadParts(Generic[K]):
    """The parts of a data set before they become tables."""

    data: DataConfig
    parts: Mapping[str, Part]
    labels: K
    columns: Mapping[str, Any]
    """The columns by their role, for the report."""
    faults: Sequence[checks.RowFault]

    def report(self, found: Findings | None = None) -> dict[str, Any]:
        """The content of the rows, and what is unusual."""
        found = found or find_unusual_rows(self.parts, self.labels)
        return {**row_report(self.parts, self.labels, found), "columns": dict(self.columns)}

    def refuse(self) -> None:
        """Raises DataError, with the report of the rows, for faults that are not allowed."""
        try:
            checks.refuse(self.faults, self.data.allow)
        except DataError as fault:
            with suppress(ValueError):  # a regression target that is not a number
                fault.found = self.report()
            raise


def finished(
    read: ReadParts[K],
    tables: dict[str, T],
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
    warn: Say,
) -> Labelled[T, K]:
    """The data set of checked rows: with its report, unusual rows raise warnings, and a part is
    held out for validation."""
    unusual = find_unusual_rows(read.parts, read.labels)
    report = read.report(unusual)
    report["warnings"] = list(checks.warnings(read.parts, read.labels, unusual, read.faults))
    for warning in report["warnings"]:
        warn(warning)
    if fraction := _fraction_to_split(read.data, read.parts):
        _split(tables, fraction, seed, tokenizer)
    report["splits"] = {name: each.counts() for name, each in tables.items()}
    train, held_out, test = (tables.get(name) for name in ("train", "validation", "test"))
    assert train is not None
    return Labelled(read.data, train, held_out, test, read.labels, report)


def _fraction_to_split(data: DataConfig, parts: Mapping[str, Part]) -> float:
    """The fraction of the training rows to hold out; 0 if there is a validation part."""
    if "validation" in parts:
        return 0.0
    fraction = data.validation_fraction
    return splits.AUTO_SHARE if fraction == "auto" else fraction


def _split(
    tables: dict[str, T],
    fraction: float,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
) -> None:
    """Hold out a part of the training table as the validation table; raises DataError if every
    stratum has only one text."""
    whole = tables["train"]
    sides = whole.sides
    held = splits.hold_out(sides, whole.strata(), fraction, seed, as_seen(sides, tokenizer))
    if not held.any():
        raise DataError(
            "no row can be held out for validation: there is only one text for each label",
            where="data.train_files",
            next="add rows, give data.validation_files, or set data.validation_fraction=0",
        )
    tables["train"], tables["validation"] = whole.part(~held), whole.part(held)


def load_known(
    found: Sequence[Source], data: DataConfig, name: str, known: Labels, watch: Watch, warn: Say
) -> LabelledTable:
    """The rows of a part, such as `test`, with the labels of a trained model; columns are resolved.

    Raises the errors of reading, and DataError for unknown labels unless `data.allow` has
    `unseen_labels`; such rows and blank ones are skipped with a warning.
    """
    part = filled(Part(name), rows_of_files(name, found, _reader(data), watch))
    checks.check_rows(part)
    if known.kind != REGRESSION:
        _name_marks(part, known)
    check_known(part, known, data, warn)
    return table(part, known)


def check_known(part: Part, known: KnownLabels, data: DataConfig, warn: Say) -> None:
    """Warns of unusual rows of a part that is not split, and raises DataError for those that
    cannot be used or have unknown labels, unless `data.allow` names the problem."""
    parts = {part.name: part}
    faults = list(checks.faults(parts, known, splitting=False))
    checks.refuse(faults, data.allow)
    checks.check_rows(part)
    for warning in checks.warnings(parts, known, find_unusual_rows(parts, known), faults):
        warn(warning)


def table(part: Part, known: Labels) -> LabelledTable:
    """The rows of a part with known labels, as a table; raises DataError if there are none."""
    rows = [row for row, raw in enumerate(part.raws) if not known.unknown(raw)]
    if not rows:
        raise DataError(f"no row of {part.key} has a known label", where=part.key)
    encoded = [known.encode(part.raws[row], "{} row {}".format(*part.places[row])) for row in rows]
    return LabelledTable(
        [part.texts[row] for row in rows],
        targets(known, encoded),
        known,
        [part.places[row] for row in rows],
    )


def _name_marks(part: Part, known: Labels) -> None:
    """Turn lists of 0 and 1, one for each label, into label names."""
    marks = labels.indicated(set(part.raws), part.key)
    if marks == len(known):
        part.raws = [labels.marked(raw, known.names, known.is_classes) for raw in part.raws]
    elif marks:
        raise DataError(
            f"labels are lists of {marks} marks, and there are {len(known)} labels",
            where=part.key,
            next=f"the labels are {labels.listing(known.names)}",
        )
