"""The stages that a document passes in order; the name of a stage is the reason why it drops or
changes a document."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import regex

from llmkit.config.data import CleanConfig
from llmkit.data.cleaning.comparing import compared_words
from llmkit.data.cleaning.language import UNKNOWN, language_of
from llmkit.data.cleaning.lines import repeated_share, without_lines
from llmkit.data.cleaning.markup import is_html, text_of_html
from llmkit.data.cleaning.mojibake import repaired
from llmkit.data.cleaning.personal import mask_personal
from llmkit.data.cleaning.quality import broken_rules

REASONS = (
    "decode", "html", "mojibake", "unicode", "boilerplate", "pii", "lowercase", "stop_words",
    "empty", "repeated", "language", "quality", "exact", "near_duplicate",
)  # fmt: skip
"""Every stage, in order."""

Value = float | str


class Judgement(NamedTuple):
    """What a stage found in a document."""

    stage: str
    value: Value
    """What was measured, or a piece that was changed."""
    limit: Value
    """What it was compared with; empty for a change."""
    removed: bool = False
    changed: bool = False
    bytes_added: int = 0
    """By a change; negative where bytes were taken out."""


class Passed(NamedTuple):
    """A document after its stages."""

    text: str
    judgements: list[Judgement]
    """What each stage found, up to the one that removed the document."""
    language: str = ""
    """Its language, where a stage asks for it."""

    @property
    def removal(self) -> Judgement | None:
        """Why the document was removed; None if it was not."""
        last = self.judgements[-1] if self.judgements else None
        return last if last and last.removed else None

    @property
    def edits(self) -> list[Judgement]:
        """The changes that stages made."""
        return [each for each in self.judgements if each.changed]


class _Text:
    """A document on its way, with what stages share."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines: list[str] | None = None
        self._language = ""

    def become(self, text: str) -> None:
        self.text, self._lines = text, None

    @property
    def lines(self) -> list[str]:
        if self._lines is None:
            self._lines = self.text.split("\n")
        return self._lines

    @property
    def language(self) -> str:
        self._language = self._language or language_of(self.text)
        return self._language

    @property
    def found_language(self) -> str:
        return self._language


_Stage = Callable[[_Text], Judgement]


class Stages:
    """The stages that the settings ask for, over single documents, with their times."""

    def __init__(self, settings: CleanConfig, boilerplate: Collection[int] = frozenset()) -> None:
        """`boilerplate` holds the hashes of lines to take out."""
        self.seconds: dict[str, float] = {}
        """Time of each stage so far."""
        self._stages = list(_stages(settings, boilerplate))

    @property
    def names(self) -> list[str]:
        """The names of the stages, in order."""
        return [name for name, _ in self._stages]

    def passed(self, text: str) -> Passed:
        """A document after the stages, or after the first that removes it."""
        document, found = _Text(text), list[Judgement]()
        started = perf_counter()
        for name, stage in self._stages:
            found.append(stage(document))
            now = perf_counter()
            self.seconds[name] = self.seconds.get(name, 0.0) + now - started
            started = now
            if found[-1].removed:
                break
        return Passed(document.text, found, document.found_language)


def _stages(settings: CleanConfig, boilerplate: Collection[int]) -> Iterator[tuple[str, _Stage]]:
    pattern, limit = stop_word_pattern(settings.stop_words), settings.repeated or 1.0
    every: dict[str, tuple[bool, _Stage]] = {
        "html": (settings.html, _html),
        "mojibake": (settings.mojibake, _mojibake),
        "unicode": (settings.unicode, _unicode),
        "boilerplate": (bool(settings.boilerplate), lambda text: _boilerplate(text, boilerplate)),
        "pii": (settings.pii == "mask", _pii),
        "lowercase": (settings.lowercase, _lowercase),
        "stop_words": (settings.stop_words is not None, lambda text: _stop_words(text, pattern)),
        "empty": (True, _empty),
        "repeated": (settings.repeated is not None, lambda text: _repeated(text, limit)),
        "language": (bool(settings.languages), lambda text: _language(text, settings.languages)),
        "quality": (settings.quality is not None, _quality),
    }
    return ((name, stage) for name, (wanted, stage) in every.items() if wanted)


def _edited(stage: str, document: _Text, text: str, value: Value) -> Judgement:
    if text == document.text:
        return Judgement(stage, "", "")
    added = len(text.encode()) - len(document.text.encode())
    document.become(text)
    return Judgement(stage, value, "", changed=True, bytes_added=added)


def _html(document: _Text) -> Judgement:
    if not is_html(document.text):
        return Judgement("html", "", "")
    text = text_of_html(document.text)
    if not text:
        return Judgement("html", "a page without text", "some text", removed=True)
    return _edited("html", document, text, "a page")


def _mojibake(document: _Text) -> Judgement:
    return _edited("mojibake", document, *repaired(document.text))


def _unicode(document: _Text) -> Judgement:
    text = document.text
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    value = "line ends" if "\r" in document.text else "composed characters"
    return _edited("unicode", document, text, value)


def _boilerplate(document: _Text, hashes: Collection[int]) -> Judgement:
    text, taken = without_lines(document.lines, hashes)
    return _edited("boilerplate", document, text, taken[0][:60] if taken else "")


def _pii(document: _Text) -> Judgement:
    text, found = mask_personal(document.text)
    value = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
    return _edited("pii", document, text, value)


def _empty(document: _Text) -> Judgement:
    empty = not document.text or document.text.isspace()
    return Judgement("empty", 0 if empty else "text", "some text", removed=empty)


def _repeated(document: _Text, limit: float) -> Judgement:
    share = repeated_share(document.lines)
    return Judgement("repeated", round(share, 4), limit, removed=share > limit)


def _language(document: _Text, wanted: tuple[str, ...]) -> Judgement:
    found = document.language
    removed = found not in (*wanted, UNKNOWN)
    return Judgement("language", found, ", ".join(wanted), removed=removed)


def _quality(document: _Text) -> Judgement:
    words, language = compared_words(document.text), document.language
    broken = next(broken_rules(document.text, document.lines, words, language), None)
    if broken is None:
        return Judgement("quality", "keeps all rules", "web")
    rule, value, limit = broken
    return Judgement("quality", f"{rule}: {value:.4g}", f"{limit:.4g}", removed=True)


def _lowercase(document: _Text) -> Judgement:
    return _edited("lowercase", document, document.text.lower(), "case")


def _stop_words(document: _Text, pattern: regex.Pattern[str]) -> Judgement:
    text = pattern.sub("", document.text).strip()
    return _edited("stop_words", document, text, "words taken out")


def stop_word_pattern(given: str | None) -> regex.Pattern[str]:
    """A pattern of the stop words of `english`, scikit-learn's list, or of a file with one in
    each line, with the space after each; without a list it matches nothing."""
    if given is None:
        return regex.compile("(?!)")
    if given == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        words = set(ENGLISH_STOP_WORDS)
    else:
        words = set(Path(given).read_text(encoding="utf-8").split())
    names = "|".join(map(regex.escape, sorted(words, key=lambda word: (-len(word), word))))
    return regex.compile(rf"\b(?:{names})\b[ \t]*", flags=regex.IGNORECASE)
