"""The language of a text: by its script where that decides, else by a model of py3langid."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex

UNKNOWN = "und"
"""The code of the language of a text that is too short to tell."""

_CHARACTERS = 1000  # at the beginning of a text; more changes nothing and takes longer
_FEWEST = 20  # letters of a text whose language the model can tell
_LETTER, _HAN, _KANA, _HANGUL = map(
    regex.compile, (r"\p{L}", r"\p{Han}", r"[\p{Hiragana}\p{Katakana}]", r"\p{Hangul}")
)


def language_of(text: str) -> str:
    """The ISO 639-1 code of the language of a text; UNKNOWN where it has too few letters."""
    some = text[: 4 * _CHARACTERS]
    letters = len(_LETTER.findall(some))
    if not letters:
        return UNKNOWN
    if len(_HANGUL.findall(some)) > letters / 2:
        return "ko"
    if kana := len(_KANA.findall(some)):
        if kana > letters / 10:
            return "ja"
    elif len(_HAN.findall(some)) > letters / 2:
        return "zh"
    if letters < _FEWEST:
        return UNKNOWN
    return str(_model().classify(text[:_CHARACTERS])[0])


def known_languages() -> list[str]:
    """The codes that `language_of` can return."""
    return sorted(set(map(str, _model().nb_classes)))


@lru_cache(maxsize=1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
