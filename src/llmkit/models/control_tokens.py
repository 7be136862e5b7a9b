"""Control tokens in text: what a person wrote stays text, and only templates place the tokens.

A tokenizer turns `<|im_end|>`, `</s>` or `[SEP]` in a text into the token of that name, so a text
can end a response or close a document. Here the control tokens of a copy of the tokenizer have
other names, which no text holds: text is then text, token for token, and a template's own control
tokens are written under the new names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around the new name of a control token. Noncharacters: Unicode keeps them out of text."""
_HIDDEN = "\ufdd2"
"""Around the number of a control token that stands for its name in a message."""


class ControlTokens:
    """The control tokens of a tokenizer: those that it marks as special, and those that it names,
    such as its eos_token. `control_tokens` makes one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self.names = sorted(_names(tokenizer), key=len, reverse=True)
        escaped = "|".join(map(re.escape, self.names))
        self._pattern = re.compile(escaped or r"(?!)")
        # Names that are matched after the normalizer may be spelled otherwise in a text.
        normalizes = getattr(tokenizer.backend_tokenizer, "normalizer", None) is not None
        control = [token for token in added if token.content in self.names]
        self._may_hide = normalizes and any(token.normalized for token in control)

    def named_in(self, text: str) -> list[str]:
        """The names of control tokens that stand in a text."""
        return self._pattern.findall(text)

    def warning(self, rows: Iterable[Iterable[str]], of: str) -> str | None:
        """What `Named.warning` says of rows of texts."""
        named = Named(self)
        for texts in rows:
            named.add(texts)
        return named.warning(of)

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without what the tokenizer puts around it; all of it is text."""
        if not self._may_hide and not self.named_in(text):
            encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
            return tuple(encoding["input_ids"])
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def ids_of_rendered(self, text: str) -> tuple[int, ...]:
        """The same of what a template wrote: the names of control tokens in it are the tokens, but
        for those that `hide` took from the messages."""
        if _HIDDEN not in text:
            encoding = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
            return tuple(encoding["input_ids"])
        return tuple(self._renamed.encode(self.placed(text), add_special_tokens=False).ids)

    def hide(self, value: Any) -> Any:
        """A message, or a part of one, with numbers in place of the names of control tokens."""
        if isinstance(value, str):
            return self._pattern.sub(
                lambda found: f"{_HIDDEN}{self.names.index(found[0])}{_HIDDEN}", value
            )
        if isinstance(value, Mapping):
            return {key: self.hide(each) for key, each in value.items()}
        return [self.hide(each) for each in value] if isinstance(value, list | tuple) else value

    def placed(self, text: str) -> str:
        """What a template wrote, for a copy that `renamed` makes: the control tokens under their
        new names, and the names that were hidden as text again."""
        text = self._pattern.sub(lambda found: _new_name(found[0]), text)
        hidden = rf"{_HIDDEN}(\d+){_HIDDEN}"
        return re.sub(hidden, lambda found: self.names[int(found[1])], text)

    @cached_property
    def _renamed(self) -> Tokenizer:
        return renamed(self.tokenizer)

    @cached_property
    def _plain(self) -> Tokenizer:
        return text_only(self.tokenizer)


class Named:
    """Counts the rows of text that name a control token."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        self.rows, self.names = 0, set[str]()

    def add(self, texts: Iterable[str]) -> None:
        """Adds a row with these texts."""
        found = {name for text in texts for name in self._control.named_in(text)}
        self.rows += bool(found)
        self.names |= found

    def warning(self, of: str) -> str | None:
        """A sentence with their number; None without any. `of` is what a row is called."""
        if not self.rows:
            return None
        names = ", ".join(sorted(self.names)[:5])
        several = "" if self.rows == 1 else "s"
        return (
            f"{self.rows:,} {of}{several} with the name of a control token ({names}), read as text"
        )


@lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer, found once."""
    return ControlTokens(tokenizer)


def text_only(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend for which everything is text; it does not pad or
    truncate."""
    copy = renamed(tokenizer)
    copy.encode_special_tokens = True
    return copy


def renamed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that knows its control tokens by new names only, which
    `ControlTokens.placed` writes; it does not pad or truncate.

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
    """Gives tokens of a model's vocabulary new names; nothing merges into them any more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(name, name): id for name, id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [each for each in model["merges"] if not _parts(each) & names.keys()]


def _parts(merge: str | list[str]) -> set[str]:
    """The tokens that a merge of BPE joins, and what it makes."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {first, second, first + second}


def _new_name(name: str) -> str:
    return f"{_OPEN}{name}{_CLOSE}"
