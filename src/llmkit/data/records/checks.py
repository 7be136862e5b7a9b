"""Check labelled data: refuse problems that would spoil the model, warn about odd rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from llmkit.data.records.findings import Findings, describe_lookalikes, lookalikes
from llmkit.data.records.labels import MULTI, KnownLabels, Labels, each, listing
from llmkit.data.records.parts import SHOWN, Part, Place, format_places
from llmkit.data.records.splits import Texts
from llmkit.errors import DataError, listed
from llmkit.reporting.format import many

PROBLEMS = {
    "tag_count": "with tokens and tags of different number",
    "bad_tags": "with a tag that does not follow the scheme",
    "bad_spans": "with a span that cannot be read",
    "bad_marks": "without one marked word",
    "bad_answers": "with an answer that is not in its context",
}
"""Why rows cannot be used, by the name of the problem in `data.allow`."""


class RowFault(NamedTuple):
    """A problem that would spoil the model."""

    what: str
    where: str
    name: str
    """Its name in `data.allow`."""


def check_training_rows(train: Part, labels: Labels) -> None:
    """Raise DataError if all rows have the same label, so that there is nothing to learn."""
    distinct = set(train.raws)
    if labels.kind == MULTI and not any(each(raw) for raw in distinct):
        problem = f"no row of {train.key} has a label"
    elif labels.kind != MULTI and len(distinct) < 2:
        problem = f"every row of {train.key} has the label {train.raws[0]!r}"
    else:
        return
    if train.blank:
        skipped = format_places(place for place, _ in train.blank)
        problem += f", but for {many(len(train.blank), 'blank row')} ({skipped})"
    raise DataError(
        f"{problem}: there is nothing to learn",
        where=train.places[0][0],
        next="add rows of another label; or is data.label_column right?",
    )


def check_rows(part: Part) -> None:
    """Raise DataError if a part has no usable row."""
    if part.texts:
        return
    blank = f": all {len(part.blank):,} rows are blank" if part.blank else ""
    files = ", ".join(part.files)
    raise DataError(
        f"{part.key} has no row with text and label{blank}",
        where=format_places(place for place, _ in part.blank) or files or part.key,
        next="add rows; or are data.text_column and data.label_column right?",
    )


def faults(parts: Mapping[str, Part], labels: KnownLabels, splitting: bool) -> Iterator[RowFault]:
    """Problems that stop a run unless allowed; `splitting` says that a part of train is held
    out."""
    for part in parts.values():
        yield from _problems(part)
        if 2 * len(part.blank) > len(part):
            what = f"{len(part.blank):,} of {len(part):,} rows of {part.key} are blank"
            yield RowFault(what, format_places(place for place, _ in part.blank), "blank")
    rare = _one_text(parts["train"], labels) if splitting else {}
    if rare:
        what = (
            f"{many(len(rare), 'label')} with one text only, which cannot be split: {listing(rare)}"
        )
        if 2 * len(rare) > len(labels.classes):
            what += " (is data.label_column right? or is this data.problem_type=regression?)"
        yield RowFault(what, format_places(rare.values()), "one_row_classes")
    for part in parts.values():
        if unknown := _unknown(part, labels):
            places = sorted({place for several in unknown.values() for place in several})
            rows = f"{many(len(places), 'row')} of {part.key}"
            what = f"{rows} with labels that {_origin(parts, labels)}"
            known = "" if "train" in parts else f"; it knows {listing(labels.classes)}"
            found = f"{what}: {listing(unknown)}{known}"
            yield RowFault(found, format_places(places), "unseen_labels")


def _problems(part: Part) -> Iterator[RowFault]:
    """Rows that cannot be used, by the name of their problem."""
    for name, what in PROBLEMS.items():
        if found := [each for each in part.problems if each.name == name]:
            rows = many(len(found), "row")
            text = f"{rows} of {part.key} {what}, the first: {found[0].reason}"
            more = " ..." if len(found) > SHOWN else ""
            where = "; ".join(each.where for each in found[:SHOWN]) + more
            yield RowFault(text, where, name)


def _origin(parts: Mapping[str, Part], labels: KnownLabels) -> str:
    if labels.from_file:
        return "data.label_names does not list"
    return f"{parts['train'].key} does not have" if "train" in parts else "the model does not know"


def refuse(found: Collection[RowFault], allowed: Collection[str]) -> None:
    """Raise one DataError for all problems that are not allowed."""
    refused = [fault for fault in found if fault.name not in allowed]
    if refused:
        names = dict.fromkeys([*allowed, *(fault.name for fault in refused)])
        raise DataError(
            "; ".join(fault.what for fault in refused),
            where=listed([fault.where for fault in refused]),
            next=f"correct the data, or accept it with data.allow=[{', '.join(names)}]",
        )


def warnings(
    parts: Mapping[str, Part],
    labels: KnownLabels,
    findings: Findings,
    allowed: Collection[RowFault],
) -> Iterator[str]:
    """Warnings about the data, one sentence each; for allowed problems, how they are handled."""
    for part in parts.values():
        yield from odd_rows(part, findings)
    if conflicts := findings.conflicts:
        shown = [
            f"{label!r} in {format_places(places)}" for label, places in conflicts[0].places.items()
        ]
        texts = many(len(conflicts), "text")
        yield f"{texts} with different labels, the first {' and '.join(shown)}"
    for fault in allowed:
        if fault.name in _DONE:
            yield f"{fault.what}: {_DONE[fault.name]} ({fault.where})"
    yield from _about_labels(parts, labels)


_SKIPPED = "these rows are skipped"
_DONE = {
    "one_row_classes": "kept in training",
    **dict.fromkeys(("unseen_labels", *PROBLEMS), _SKIPPED),
}


_ALIKE = "the same only as the model reads it: case, accents or white space differ"


def odd_rows(part: Part, findings: Findings) -> Iterator[str]:
    """Warnings about the rows of a part, one sentence each."""
    duplicates = [repeat for repeat in findings.duplicates if repeat.part == part.name]
    overlap = [repeat for repeat in findings.overlap if repeat.part == part.name]
    if part.blank:
        rows = many(len(part.blank), "row")
        places = format_places(place for place, _ in part.blank)
        yield f"{rows} of {part.key} blank, skipped: {places}"
    for repeats, what in (
        (duplicates, "the text of an earlier row"),
        (overlap, "a text that training or validation data holds too"),
    ):
        if repeats:
            places = format_places(repeat.place for repeat in repeats)
            inexact = sum(not repeat.exact for repeat in repeats)
            but = f" ({inexact:,} {_ALIKE})" if inexact else ""
            yield f"{many(len(repeats), 'row')} of {part.key} with {what}{but}: {places}"
    if empty := [path for path, rows in part.files.items() if not rows]:
        shown = ", ".join(empty[:5]) + (", ..." if empty[5:] else "")
        yield f"{many(len(empty), 'file')} of {part.key} without a row: {shown}"
    if part.counts.blank_lines:
        yield f"{many(part.counts.blank_lines, 'empty line')} of {part.key} skipped"
    if part.counts.undecodable:
        yield f"{many(part.counts.undecodable, 'byte')} of {part.key} that cannot be decoded"


def _about_labels(parts: Mapping[str, Part], labels: KnownLabels) -> Iterator[str]:
    for group in lookalikes(labels.classes):
        shown = describe_lookalikes(group)
        yield f"labels that differ only in their spelling are different labels: {shown}"
    for part in parts.values():
        present = {name for raw in set(part.raws) for name in labels.present(raw)}
        if missing := [name for name in labels.classes if name not in present]:
            yield f"{many(len(missing), 'label')} without a row in {part.key}: {listing(missing)}"
        without = [place for raw, place in zip(part.raws, part.places, strict=True) if raw == ()]
        if without:
            rows = many(len(without), "row")
            yield f"{rows} of {part.key} without any label: {format_places(without)}"


def _unknown(part: Part, labels: KnownLabels) -> dict[str, list[Place]]:
    """The labels of a part that are unknown, and their places."""
    unknown: dict[str, list[Place]] = {}
    for raw, place in zip(part.raws, part.places, strict=True):
        for label in labels.unknown(raw):
            unknown.setdefault(label, []).append(place)
    return unknown


def _one_text(part: Part, labels: KnownLabels) -> dict[str, Place]:
    """The labels of only one text, each with its place."""
    texts_of: dict[str, set[Texts]] = {}
    place_of: dict[str, Place] = {}
    for alike, raw, place in zip(part.identities, part.raws, part.places, strict=True):
        for name in labels.present(raw):
            texts_of.setdefault(name, set()).add(alike)
            place_of.setdefault(name, place)
    return {label: place_of[label] for label, texts in texts_of.items() if len(texts) == 1}
