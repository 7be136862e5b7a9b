"""Labels that a person would take for one another, and the characters in which they differ."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from llmkit.data.labels import NUMBER

_LATIN = str.maketrans(
    "АВЕКМНОРСТХУІЈЅаеорсухіјѕԁһԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧονı",  # noqa: RUF001
    "ABEKMHOPCTXYIJSaeopcyxijsdhqwABEZHIKMNOPTYXovi",
)
"""Cyrillic and Greek letters that look like Latin ones."""

_MOST = 3  # characters of one label that are named


def alike(names: Collection[str]) -> list[list[str]]:
    """Groups of names that look alike: they differ in case, white space, invisible characters,
    punctuation at the end, the composition of accents, letters of another script, or in how a
    number is written."""
    groups: dict[str | float, list[str]] = {}
    for name in names:
        groups.setdefault(_look(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def described(group: Collection[str]) -> str:
    """The names of a group, with the characters by name that do not show what they are."""
    odd = {name: _odd(name) for name in group}
    return ", ".join(
        f"{name[:60]!r}" + (f" (with {', '.join(odd[name])})" if odd[name] else "")
        for name in group
    )


def _look(name: str) -> str | float:
    """What stands for all names that look like this one."""
    plain = unicodedata.normalize("NFKC", name)
    if NUMBER.fullmatch(plain):
        return float(plain)
    seen = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    # Folding case may decompose: once more composed, all spellings are one.
    folded = unicodedata.normalize("NFKC", seen.translate(_LATIN).casefold())
    words = " ".join(folded.split())
    return words.rstrip(" .,;:!?") or words


def _odd(name: str) -> list[str]:
    found = dict.fromkeys(c for c in name if not (c.isascii() and c.isprintable()))
    return [f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in found][:_MOST]
