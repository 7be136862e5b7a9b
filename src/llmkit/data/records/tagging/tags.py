"""Tags of words: their scheme, the entities that they spell, and the tags that spell entities.

Schemes that mark entities write a letter before the type: B begins an entity and I continues it
(BIO), or L ends one of several words and U is one of a single word (BILOU; also as E and S, and
with M for I). In a plain scheme, such as parts of speech, each word has a separate tag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.records.labels import NamedOutputs, Raw, each, ordered_names

BIO, BILOU, PLAIN_TAGS = "bio", "bilou", "plain"
"""The schemes, as `data.tag_scheme` names them."""

OUTSIDE = "O"
"""The tag of a word that is in no entity."""

_OUT, _BEGIN, _INSIDE, _LAST, _UNIT = range(5)
_ROLES = {"B": _BEGIN, "I": _INSIDE, "M": _INSIDE, "L": _LAST, "E": _LAST, "U": _UNIT, "S": _UNIT}
_OPEN = (_BEGIN, _INSIDE)
_UNTYPED = "_"

Parsed = tuple[int, str]
"""The role of a tag, and the type of its entity."""


class TagFault(NamedTuple):
    """A tag that does not follow the scheme."""

    word: int
    """Its index in the row."""
    reason: str


class Entities(NamedTuple):
    """Entities as arrays, in order."""

    first: NDArray[np.int64]
    """The number of the first word."""
    end: NDArray[np.int64]
    """The number after that of the last word."""
    kind: NDArray[np.int64]
    """The index of the type."""
    is_strict: NDArray[np.bool_]
    """Whether the tags follow the scheme; otherwise the entity is read leniently."""

    def __len__(self) -> int:
        return len(self.first)

    def chosen(self, mask: NDArray[np.bool_]) -> Entities:
        """The entities of a mask."""
        return Entities(self.first[mask], self.end[mask], self.kind[mask], self.is_strict[mask])


@dataclass(frozen=True)
class TagSet(NamedOutputs):
    """The tags that a model predicts, in the order of its outputs."""

    scheme: str
    names: tuple[str, ...]
    from_file: bool = False
    """Whether a number in the data is the index of a name."""

    @property
    def has_entities(self) -> bool:
        """Whether the tags mark entities."""
        return self.scheme != PLAIN_TAGS

    @property
    def kind(self) -> str:
        """What is learned, with transformers' name."""
        return "token_classification"

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of entities; in a plain scheme the tags themselves."""
        if not self.has_entities:
            return self.names
        return tuple(dict.fromkeys(kind for role, kind in self._parsed if role != _OUT))

    @cached_property
    def outside(self) -> int | None:
        """The number of the tag outside of entities."""
        return self._numbers.get(OUTSIDE)

    @cached_property
    def continued(self) -> NDArray[np.int64]:
        """[tags], the tag of a word that continues a word of each tag: the inside of its entity; in
        a plain scheme the same tag."""
        inside = {kind: n for n, (role, kind) in enumerate(self._parsed) if role == _INSIDE}
        return np.array([inside.get(kind, n) for n, (_, kind) in enumerate(self._parsed)])

    @property
    def classes(self) -> tuple[str, ...]:
        """The types whose entities are counted, or the tags of a plain scheme."""
        return self.types

    def unknown(self, raw: Raw) -> list[str]:
        """The tags of a row that are unknown."""
        return [tag for tag in each(raw) if self.number(tag) is None]

    def present(self, raw: Raw) -> list[str]:
        """The types of the entities of a row; in a plain scheme the tags of its words."""
        numbers = [number for tag in each(raw) if (number := self.number(tag)) is not None]
        begun = (self._parsed[number] for number in numbers)
        return [kind for role, kind in begun if role in (_BEGIN, _UNIT)]

    def shown(self, raw: Raw) -> str:
        """The tags of a row, for a message."""
        return " ".join(each(raw))

    def entities(self, tags: NDArray[np.int64], starts: NDArray[np.int64]) -> Entities:
        """The entities in the tags [words] of rows that begin at `starts`.

        They are read like the default of seqeval and the script of CoNLL-2000: a tag that continues
        nothing begins an entity.
        """
        role, kind = self._roles[tags], self._kinds[tags]
        before_role, before_kind = np.roll(role, 1), np.roll(kind, 1)
        first_words = np.unique(starts[starts < len(tags)])
        before_role[first_words], before_kind[first_words] = _OUT, -1
        is_new = (role == _BEGIN) | (role == _UNIT) | (kind != before_kind)
        is_new |= (before_role == _LAST) | (before_role == _UNIT)
        first = np.flatnonzero(is_new & (role != _OUT))
        # An entity ends where another begins, where a row begins, or outside.
        bounds = np.flatnonzero(is_new | (role == _OUT))
        bounds = np.union1d(np.union1d(bounds, first_words), [len(tags)])
        end = bounds[np.searchsorted(bounds, first, side="right")]
        begins, ends = role[first], role[end - 1]
        if self.scheme == BIO:
            is_strict = begins == _BEGIN
        else:
            is_strict = (begins == _UNIT) | ((begins == _BEGIN) & (ends == _LAST))
        return Entities(first, end, kind[first], is_strict)

    @cached_property
    def _parsed(self) -> list[Parsed]:
        if not self.has_entities:
            return [(_UNIT, name) for name in self.names]
        return [parsed_tag(name) or (_UNIT, name) for name in self.names]

    @cached_property
    def _roles(self) -> NDArray[np.int64]:
        return np.array([role for role, _ in self._parsed])

    @cached_property
    def _kinds(self) -> NDArray[np.int64]:
        numbers = {kind: number for number, kind in enumerate(self.types)}
        return np.array([-1 if role == _OUT else numbers[kind] for role, kind in self._parsed])


def parsed_tag(tag: str) -> Parsed | None:
    """The role and the type of a tag; None if it has no letter of a scheme."""
    if tag == OUTSIDE:
        return _OUT, ""
    role = _ROLES.get(tag[:1])
    if role is None or tag[1:2] not in ("", "-", "_"):
        return None
    return role, tag[2:] or _UNTYPED


def scheme_of(tags: Collection[str]) -> str:
    """The scheme of these distinct tags: that of entities if most have a letter of it."""
    named = [tag for tag in tags if tag != OUTSIDE]
    roles = [found[0] for tag in named if (found := parsed_tag(tag))]
    if not named or 2 * len(roles) < len(named):
        return PLAIN_TAGS
    return BILOU if {_LAST, _UNIT} & set(roles) else BIO


def tag_set(scheme: str, tags: Collection[str]) -> TagSet:
    """The tags of a training set. For entities: `O`, and every tag that the scheme has for a type
    that occurs."""
    if scheme == PLAIN_TAGS:
        return TagSet(scheme, tuple(ordered_names(tags)))
    letters = {tag[0] for tag in tags if tag != OUTSIDE and parsed_tag(tag)}
    if scheme == BIO:
        letters |= {"B", "I"}
    bodies = sorted({tag[1:] for tag in tags if tag != OUTSIDE and parsed_tag(tag)})
    roles = sorted(letters, key=lambda letter: _ROLES[letter])
    return TagSet(scheme, (OUTSIDE, *(f"{letter}{body}" for body in bodies for letter in roles)))


def is_iob1(rows: Iterable[Sequence[str]]) -> bool:
    """Whether the tags are of the older scheme IOB1: an entity begins with I, and with B only right
    after another of its type."""
    begins_with_i = False
    for row in rows:
        before: Parsed | None = (_OUT, "")
        for tag in row:
            found = parsed_tag(tag)
            after = before is not None and found is not None and before[1] == found[1]
            if found and found[0] == _BEGIN and not after:
                return False
            begins_with_i |= found is not None and found[0] == _INSIDE and not after
            before = found
    return begins_with_i


def iob1_as_bio(row: Sequence[str]) -> tuple[str, ...]:
    """The tags of a row of IOB1 in BIO."""
    before, found = OUTSIDE, []
    for tag in row:
        begins = tag[:1] == "I" and (before == OUTSIDE or tag[1:] != before[1:])
        found.append(f"B{tag[1:]}" if begins else tag)
        before = tag
    return tuple(found)


def tag_fault(scheme: str, row: Sequence[str]) -> TagFault | None:
    """The first tag of a row that does not follow a scheme of entities; None if all do."""
    before: Parsed = (_OUT, "")
    for word, tag in enumerate(row):
        found = parsed_tag(tag)
        if found is None or (scheme == BIO and found[0] in (_LAST, _UNIT)):
            letters = "B- and I-" if scheme == BIO else "B-, I-, L- and U-"
            return TagFault(word, f"{tag!r} is neither {OUTSIDE} nor a tag with {letters}")
        role, kind = found
        continues = role in (_INSIDE, _LAST)
        is_open = before[0] in _OPEN
        if continues and not (is_open and before[1] == kind):
            after = f"after {row[word - 1]!r}" if word else "at the beginning"
            return TagFault(word, f"{tag!r} {after} continues no entity")
        if scheme == BILOU and is_open and not continues:
            return TagFault(word, f"{tag!r} after {row[word - 1]!r}, which is not ended")
        before = found
    if scheme == BILOU and before[0] in _OPEN:
        return TagFault(len(row) - 1, f"{row[-1]!r} at the end, which is not ended")
    return None


def bio_tags(n_words: int, spans: Iterable[tuple[int, int, str]]) -> tuple[str, ...]:
    """The BIO tags of spans of words, each given by its first word, the word after it, and its
    type."""
    tags = [OUTSIDE] * n_words
    for first, end, kind in spans:
        tags[first] = f"B-{kind}"
        tags[first + 1 : end] = [f"I-{kind}"] * (end - first - 1)
    return tuple(tags)


def flat_tags(known: TagSet, rows: Iterable[Sequence[Any]]) -> NDArray[np.int64]:
    """The numbers of the tags of all rows, one after the other; all are known."""
    return np.array(list(_numbers_of(known, rows)), dtype=np.int64)


def _numbers_of(known: TagSet, rows: Iterable[Sequence[Any]]) -> Iterator[int]:
    for row in rows:
        for tag in row:
            number = known.number(tag)
            assert number is not None, tag
            yield number
