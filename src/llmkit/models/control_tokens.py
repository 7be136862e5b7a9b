"""Control tokens in text: user text is always encoded as text, and only templates insert the
tokens.

A tokenizer encodes `<|im_end|>`, `</s>` or `[SEP]` in a text as the token of that name, so a text
could end a response or a document. Here a copy of the tokenizer renames its control tokens to names
that occur in no text: text is then encoded as text, and a template's own control tokens are written
under the new names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Enclose the new name of a control token. They are noncharacters, which Unicode bars from text."""
_HIDDEN = "\ufdd2"
"""Encloses the number of a control token, as a placeholder for its name in a message."""


class ControlTokens:
    """The control tokens of a tokenizer: those marked as special, and named ones such as its
    eos_token. Create it with `control_tokens`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self.names = sorted(_names(tokenizer), key=len, reverse=True)
        escaped = "|".join(map(re.escape, self.names))
        self._pattern = re.compile(escaped or r"(?!)")
        # Names that are matched after normalization may be spelled otherwise in a text.
        backend = getattr(tokenizer, "backend_tokenizer", None)  # some are written in Python
        normalizes = getattr(backend, "normalizer", None) is not None
        control = [token for token in added if token.content in self.names]
        self._may_hide = normalizes and any(token.normalized for token in control)

    def named_in(self, text: str) -> list[str]:
        """The names of control tokens that occur in a text."""
        return self._pattern.findall(text)

    def warning(self, rows: Iterable[Iterable[str]], of: str) -> str | None:
        """The warning of `ControlTokenCount` for rows of texts."""
        named = ControlTokenCount(self)
        for texts in rows:
            named.add(texts)
        return named.warning(of)

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without the special tokens around it; names of control tokens are
        text."""
        if not self._may_hide and not self.named_in(text):
            encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
            return tuple(encoding["input_ids"])
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def framed_ids(self, text: str, read: Collection[str]) -> tuple[int, ...]:
        """The ids of a text with the special tokens around it; of the names of control tokens,
        those in `read` are the tokens, and others are text."""
        marked = self._pattern.sub(
            lambda found: _new_name(found[0]) if found[0] in read else found[0], text
        )
        return tuple(self._renamed.encode(marked).ids)

    def ids_of_rendered(self, text: str) -> tuple[int, ...]:
        """The ids of a template's output: names of control tokens in it become the tokens, except
        those that `hide` replaced in the messages."""
        if _HIDDEN not in text:
            encoding = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
            return tuple(encoding["input_ids"])
        return tuple(self._renamed.encode(self.placed(text), add_special_tokens=False).ids)

    def hide(self, value: Any) -> Any:
        """Replaces the names of control tokens in a message, or part of one, by placeholders."""
        if isinstance(value, str):
            return self._pattern.sub(
                lambda found: f"{_HIDDEN}{self.names.index(found[0])}{_HIDDEN}", value
            )
        if isinstance(value, Mapping):
            return {key: self.hide(each) for key, each in value.items()}
        return [self.hide(each) for each in value] if isinstance(value, list | tuple) else value

    def placed(self, text: str) -> str:
        """Prepares a template's output for the tokenizer of `renamed`: control tokens get their new
        names, and placeholders become the hidden names again."""
        text = self._pattern.sub(lambda found: _new_name(found[0]), text)
        hidden = rf"{_HIDDEN}(\d+){_HIDDEN}"
        return re.sub(hidden, lambda found: self.names[int(found[1])], text)

    @cached_property
    def _renamed(self) -> Tokenizer:
        return renamed(self.tokenizer)

    @cached_property
    def _plain(self) -> Tokenizer:
        return text_only(self.tokenizer)


class ControlTokenCount:
    """Counts rows whose texts contain the name of a control token."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        self.rows, self.names = 0, set[str]()

    def add(self, texts: Iterable[str]) -> None:
        """Adds a row with these texts."""
        found = {name for text in texts for name in self._control.named_in(text)}
        self.rows += bool(found)
        self.names |= found

    def warning(self, of: str) -> str | None:
        """A sentence with the count, where `of` is the noun for a row; None if the count is 0."""
        if not self.rows:
            return None
        names = ", ".join(sorted(self.names)[:5])
        several = "" if self.rows == 1 else "s"
        return (
            f"{self.rows:,} {of}{several} with the name of a control token ({names}), read as text"
        )


@lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer (cached)."""
    return ControlTokens(tokenizer)


def text_only(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that encodes everything as text; it does not pad or
    truncate."""
    copy = renamed(tokenizer)
    copy.encode_special_tokens = True
    return copy


def renamed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that recognizes its control tokens only under new names,
    which `ControlTokens.placed` writes; it does not pad or truncate.

    Texts without the old names get the same ids from it.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings |= {"truncation": None, "padding": None}
    names, control = {}, _names(tokenizer)
    for token in settings["added_tokens"]:
        if token["content"] in control:
            names[token["content"]] = token["content"] = _new_name(token["content"])
            token["normalized"] = False
    _rename(settings["model"], names)
    return Tokenizer.from_str(json.dumps(settings))


def _names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    named = set(map(str, tokenizer.all_special_tokens))
    return {token.content for token in added if token.special or token.content in named}


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Renames tokens of a model's vocabulary, and removes the merges that produce them."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(name, name): id for name, id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [each for each in model["merges"] if not _tokens_of(each) & names.keys()]


def _tokens_of(merge: str | list[str]) -> set[str]:
    """The two tokens that a BPE merge joins, and their result."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {first, second, first + second}


def _new_name(name: str) -> str:
    return f"{_OPEN}{name}{_CLOSE}"
