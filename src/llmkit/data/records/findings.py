"""Report on labelled data before training: its content, and unusual rows and labels."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmkit.data.records.labels import NUMBER, REGRESSION, KnownLabels
from llmkit.data.records.parts import SHOWN, Part, Place
from llmkit.data.records.splits import Texts, text_identity


class _Repeat(NamedTuple):
    """A row that repeats the text of an earlier row."""

    part: str
    place: Place
    first_part: str
    first_place: Place
    exact: bool
    """Whether the texts are identical, white space included."""


class _Conflict(NamedTuple):
    """A text with different labels in different rows."""

    texts: Texts
    places: dict[str, list[Place]]


class Alone(NamedTuple):
    """A label that only one part has, and the first row that has it."""

    label: str
    part: str
    place: Place


@dataclass(frozen=True)
class Findings:
    """All unusual rows of all parts."""

    duplicates: list[_Repeat]
    """Within one part."""
    overlap: list[_Repeat]
    """Between parts."""
    conflicts: list[_Conflict]
    unseen_labels: list[Alone]


def find_unusual_rows(parts: Mapping[str, Part], labels: KnownLabels) -> Findings:
    """The unusual rows of all keys together.

    Texts are the same if the tokenizer encodes them alike, or without a tokenizer, if they differ
    only in the white space around them.
    """
    found = list(repeats(parts))
    return Findings(
        duplicates=[repeat for repeat in found if repeat.part == repeat.first_part],
        overlap=[repeat for repeat in found if repeat.part != repeat.first_part],
        conflicts=list(_conflicts(parts, labels)),
        unseen_labels=list(_alone(parts, labels)),
    )


def row_report(
    parts: Mapping[str, Part], labels: KnownLabels, findings: Findings
) -> dict[str, Any]:
    """The content of the rows, for JSON output.

    `rows` and `classes` are those of the training files. A finding has a `count` and the first
    SHOWN of its `rows`, each with its file and its number there, counted from 1. For repeated
    texts, `count` is of identical ones, `count_stripped` also of those that the model reads as the
    same.
    """
    train = parts["train"]
    blank = [
        {"split": part.name, **place_of(place), "blank": what}
        for part in parts.values()
        for place, what in part.blank
    ]
    found: dict[str, Any] = {
        "problem_type": labels.kind,
        "rows": len(train),
        "classes": classes(train, labels),
        "blank": finding(blank),
        "duplicates": repeated(findings.duplicates),
        "conflicts": finding([_conflict(conflict) for conflict in findings.conflicts]),
        "overlap": repeated(findings.overlap),
        "unseen_labels": finding(
            [
                {"label": alone.label, "split": alone.part, **place_of(alone.place)}
                for alone in findings.unseen_labels
            ]
        ),
        "blank_lines": sum(part.counts.blank_lines for part in parts.values()),
        "undecodable": sum(part.counts.undecodable for part in parts.values()),
    }
    for name in dict.fromkeys(each.name for part in parts.values() for each in part.problems):
        rows = [
            {"split": part.name, **place_of(each.place), "reason": each.reason}
            for part in parts.values()
            for each in part.problems
            if each.name == name
        ]
        found[name] = finding(rows)
    if labels.kind == REGRESSION:
        values = [float(str(raw)) for raw in train.raws]
        mean = sum(values) / len(values)
        found["values"] = {"min": min(values), "max": max(values), "mean": mean}
    return found


def classes(part: Part, labels: KnownLabels) -> dict[str, int]:
    """Rows of each label, or entities of each type, in their order; empty for a regression."""
    found = Counter(name for raw in part.raws for name in labels.present(raw))
    return {name: found[name] for name in labels.classes}


def repeats(parts: Mapping[str, Part]) -> Iterator[_Repeat]:
    """Rows that repeat the text of an earlier row of their part or of an earlier part, or of
    both."""
    before = _Seen({}, {})
    for part in parts.values():
        own = _Seen({}, {})
        for texts, alike, place in zip(part.texts, part.identities, part.places, strict=True):
            for seen in (own, before):
                exact = seen.exact.get(texts)
                if first := exact or seen.alike.get(alike):
                    yield _Repeat(part.name, place, *first, exact is not None)
            own.exact.setdefault(texts, (part.name, place))
            own.alike.setdefault(alike, (part.name, place))
        before = _Seen(own.exact | before.exact, own.alike | before.alike)


class _Seen(NamedTuple):
    """The first places of texts, by the exact text and as the model reads it."""

    exact: dict[Texts, tuple[str, Place]]
    alike: dict[Texts, tuple[str, Place]]


def _conflicts(parts: Mapping[str, Part], labels: KnownLabels) -> Iterator[_Conflict]:
    found: dict[Texts, dict[str, list[Place]]] = {}
    first: dict[Texts, Texts] = {}
    for part in parts.values():
        rows = zip(part.texts, part.identities, part.raws, part.places, strict=True)
        for texts, alike, raw, place in rows:
            first.setdefault(alike, text_identity(texts))
            found.setdefault(alike, {}).setdefault(labels.shown(raw), []).append(place)
    return (_Conflict(first[each], places) for each, places in found.items() if len(places) > 1)


def _alone(parts: Mapping[str, Part], labels: KnownLabels) -> Iterator[Alone]:
    if len(parts) == 1:
        return
    first: dict[str, dict[str, Place]] = {}
    for part in parts.values():
        for raw, place in zip(part.raws, part.places, strict=True):
            for name in labels.present(raw):
                first.setdefault(name, {}).setdefault(part.name, place)
    for label, places in first.items():
        if len(places) == 1:
            [(name, place)] = places.items()
            yield Alone(label, name, place)


def finding(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows for a report: all are counted, the first SHOWN are listed."""
    return {"count": len(rows), "rows": list(rows[:SHOWN])}


def place_of(place: Place) -> dict[str, Any]:
    """A file and a row of it, for a report."""
    return {"file": place[0], "row": place[1]}


def repeated(repeats: Sequence[_Repeat]) -> dict[str, Any]:
    """Rows that repeat others, for a report; `count` is of identical texts."""
    rows = [
        {
            "split": repeat.part,
            **place_of(repeat.place),
            "repeats": {"split": repeat.first_part, **place_of(repeat.first_place)},
            "exact": repeat.exact,
        }
        for repeat in repeats
    ]
    exact = sum(repeat.exact for repeat in repeats)
    return {**finding(rows), "count": exact, "count_stripped": len(repeats)}


def _conflict(conflict: _Conflict) -> dict[str, Any]:
    places = {
        label: [place_of(place) for place in several[:SHOWN]]
        for label, several in conflict.places.items()
    }
    return {"text": " / ".join(conflict.texts)[:100], "labels": places}


_LATIN = str.maketrans(
    "АВЕКМНОРСТХУІЈЅаеорсухіјѕԁһԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧονı",  # noqa: RUF001
    "ABEKMHOPCTXYIJSaeopcyxijsdhqwABEZHIKMNOPTYXovi",
)
"""Cyrillic and Greek letters that look like Latin ones."""

_MOST = 3  # maximum number of characters named per label


def lookalikes(names: Collection[str]) -> list[list[str]]:
    """Groups of names that look alike: they differ in case, white space, invisible characters,
    punctuation at the end, the composition of accents, letters of another script, or in how a
    number is written."""
    groups: dict[str | float, list[str]] = {}
    for name in names:
        groups.setdefault(_looks_as(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_lookalikes(group: Collection[str]) -> str:
    """The names of a group, with the Unicode names of ambiguous characters."""
    odd = {name: _odd(name) for name in group}
    return ", ".join(
        f"{name[:60]!r}" + (f" (with {', '.join(odd[name])})" if odd[name] else "")
        for name in group
    )


def _looks_as(name: str) -> str | float:
    """One key for all names that look like this one."""
    plain = unicodedata.normalize("NFKC", name)
    if NUMBER.fullmatch(plain):
        return float(plain)
    seen = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    # Folding case may decompose characters: composing them again unites all spellings.
    folded = unicodedata.normalize("NFKC", seen.translate(_LATIN).casefold())
    words = " ".join(folded.split())
    return words.rstrip(" .,;:!?") or words


def _odd(name: str) -> list[str]:
    found = dict.fromkeys(c for c in name if not (c.isascii() and c.isprintable()))
    return [f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in found][:_MOST]
