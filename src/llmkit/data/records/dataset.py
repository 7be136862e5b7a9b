"""Load a labelled data set: read, checked and split for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.encoded import LabelledTable, targets
from llmkit.data.readers import roles
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import checks, findings, labels, splits
from llmkit.data.records.findings import find_unusual_rows, row_report
from llmkit.data.records.labelled import Part, read_part
from llmkit.data.records.labels import REGRESSION, Labels
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError, InputNotFound
from llmkit.progress import Say, Watch


@dataclass(frozen=True)
class Labelled:
    """A labelled data set."""

    data: DataConfig
    """The data section with the columns resolved."""
    train: LabelledTable
    validation: LabelledTable | None
    """None if nothing is held out and no validation files are given."""
    test: LabelledTable | None
    labels: Labels
    report: dict[str, Any]
    """The data report, for JSON output."""


def load_labelled(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Labelled:
    """Read, check and split all labelled data of a config.

    Texts that the given tokenizer encodes alike count as the same. Guesses are reported, unusual
    rows raise warnings. Raises the errors of reading, and DataError for data that would spoil the
    model and is not allowed by `data.allow`.
    """
    names = ("train", "validation", "test")
    found = {name: some for name in names if (some := sources.of(f"data.{name}_files"))}
    if "train" not in found:
        raise InputNotFound(
            "data.train_files is not given",
            where="data.train_files",
            next="data.train_files=FILE, a directory, a glob, or hub:NAME",
        )
    everything = list(chain.from_iterable(found.values()))
    data = roles.resolve_label_columns(everything, config.data, say)
    parts = {name: read_part(some, data, name, watch) for name, some in found.items()}
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
    fraction = splits.AUTO_SHARE if data.validation_fraction == "auto" else data.validation_fraction
    splitting = "validation" not in parts and fraction > 0
    columns = {"text": data.text_column, "label": data.label_column}
    faults = list(checks.faults(parts, known, splitting))
    _refuse(faults, parts, known, data, columns)
    tables = {name: table(part, known) for name, part in parts.items()}
    findings = find_unusual_rows(parts, known)
    report = {**row_report(parts, known, findings), "columns": columns}
    report["warnings"] = list(checks.warnings(parts, known, findings, faults))
    for warning in report["warnings"]:
        warn(warning)
    if splitting:
        _split(tables, fraction, config.seed, tokenizer)
    report["splits"] = {name: _counts(each) for name, each in tables.items()}
    return Labelled(
        data, tables["train"], tables.get("validation"), tables.get("test"), known, report
    )


def _refuse(
    faults: Sequence[checks.RowFault],
    parts: Mapping[str, Part],
    known: Labels,
    data: DataConfig,
    columns: Mapping[str, Any],
) -> None:
    """Raises DataError, with the report of the rows, for faults that are not allowed."""
    try:
        checks.refuse(faults, data.allow)
    except DataError as fault:
        with suppress(ValueError):  # a regression target that is not a number
            report = row_report(parts, known, find_unusual_rows(parts, known))
            fault.found = {**report, "columns": dict(columns)}
        raise


def load_known(
    found: Sequence[Source], data: DataConfig, name: str, known: Labels, watch: Watch, warn: Say
) -> LabelledTable:
    """The rows of a part, such as `test`, with the labels of a trained model; columns are resolved.

    Raises the errors of reading, and DataError for unknown labels unless `data.allow` has
    `unseen_labels`; such rows and blank ones are skipped with a warning.
    """
    part = read_part(found, data, name, watch)
    checks.check_rows(part)
    if known.kind != REGRESSION:
        _name_marks(part, known)
    parts = {name: part}
    faults = list(checks.faults(parts, known, splitting=False))
    checks.refuse(faults, data.allow)
    for warning in checks.warnings(parts, known, findings.find_unusual_rows(parts, known), faults):
        warn(warning)
    return table(part, known)


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


def _split(
    tables: dict[str, LabelledTable],
    fraction: float,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
) -> None:
    """Hold out a part of the training table as the validation table; raises DataError if every
    stratum has only one text."""
    whole = tables["train"]
    strata = splits.strata(whole.labels, whole.targets)
    seen = as_seen(whole.texts, tokenizer)
    held = splits.hold_out(whole.texts, strata, fraction, seed, seen)
    if not held.any():
        raise DataError(
            "no row can be held out for validation: there is only one text for each label",
            where="data.train_files",
            next="add rows, give data.validation_files, or set data.validation_fraction=0",
        )
    tables["train"], tables["validation"] = whole.part(~held), whole.part(held)


def _counts(each: LabelledTable) -> dict[str, Any]:
    counts: dict[str, Any] = {"rows": len(each)}
    if each.targets.dtype == np.int64:
        numbers = np.bincount(each.targets, minlength=len(each.labels)).tolist()
        counts["classes"] = dict(zip(each.labels.names, numbers, strict=True))
    elif each.targets.ndim > 1:
        numbers = each.targets.sum(axis=0).tolist()
        counts["classes"] = dict(zip(each.labels.names, numbers, strict=True))
    return counts
