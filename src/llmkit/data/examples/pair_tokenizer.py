"""Encode source and target texts for an encoder-decoder model, each as its tokenizer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmkit.data.examples.encoded import Encoded, padding_id
from llmkit.errors import ConfigError
from llmkit.models.control_tokens import ControlTokenCount, control_tokens

_TEXTS_AT_ONCE = 1024


class PairTokenizer:
    """The tokenizer of an encoder-decoder model: some have another vocabulary for targets, or put
    the code of a language around a text.

    `prefix` is put before each source, and `languages` are the codes of source and target, where
    the tokenizer marks them. Names of control tokens in a text are read as text.

    Raises ConfigError for a code that is missing, unknown or of no use.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefix: str = "",
        languages: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.tokenizer, self.prefix, self.languages = tokenizer, prefix, languages
        _set_languages(tokenizer, languages)
        self.pad_id = padding_id(tokenizer)
        self.named = ControlTokenCount(control_tokens(tokenizer))

    @cached_property
    def own_settings(self) -> dict[str, int]:
        """The entries of transformers' generation config that make a text begin with the code of
        its language: mBART starts its decoder with it, others write it first."""
        if self.languages[1] is None:
            return {}
        code, probe = _code_id(self.tokenizer, self.languages[1]), self.targets(["a"], None).ids
        if code is None or code not in probe:
            return {}
        is_first = code == probe[0]
        return {"forced_bos_token_id" if is_first else "decoder_start_token_id": code}

    def sources(
        self,
        texts: Sequence[str],
        max_length: int | None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Encoded:
        """The source texts with their prefix, cut after `max_length` tokens."""
        return self._encoded([self.prefix + text for text in texts], "text", max_length, advance)

    def targets(
        self,
        texts: Sequence[str],
        max_length: int | None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Encoded:
        """The target texts, cut after `max_length` tokens."""
        return self._encoded(texts, "text_target", max_length, advance)

    def _encoded(
        self,
        texts: Sequence[str],
        side: str,
        max_length: int | None,
        advance: Callable[[int], None],
    ) -> Encoded:
        ids: list[list[int]] = []
        uncut: list[int] = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[first : first + _TEXTS_AT_ONCE]
            for text in some:
                self.named.add((text,))
            found = self._ids(some, side)
            uncut += map(len, found)
            long = [row for row, each in enumerate(found) if len(each) > (max_length or len(each))]
            if long:  # the tokenizer keeps its special tokens when it cuts
                cut = self._ids(
                    [some[row] for row in long], side, truncation=True, max_length=max_length
                )
                for row, each in zip(long, cut, strict=True):
                    found[row] = each
            ids += found
            advance(len(some))
        return Encoded.of_ids(ids, self.pad_id, uncut)

    def _ids(self, texts: Sequence[str], side: str, **options: Any) -> list[list[int]]:
        given = {side: list(texts)}
        found: list[list[int]] = self.tokenizer(
            **given, split_special_tokens=True, verbose=False, **options
        )["input_ids"]
        return found


def _set_languages(
    tokenizer: PreTrainedTokenizerBase, languages: tuple[str | None, str | None]
) -> None:
    for name, code, key in zip(
        ("src_lang", "tgt_lang"), languages, ("source_lang", "target_lang"), strict=True
    ):
        marks = hasattr(type(tokenizer), "src_lang")
        if not marks and code is None:
            continue
        if not marks:
            raise ConfigError(
                f"the tokenizer, a {type(tokenizer).__name__}, marks no languages",
                where=f"data.{key}",
                next="remove it; for T5, data.prefix names the languages",
            )
        if code is None or _code_id(tokenizer, code) is None:
            known = ", ".join(_codes(tokenizer)[:8])
            raise ConfigError(
                "the tokenizer needs the codes of both languages"
                if code is None
                else f"the tokenizer has no language {code!r}",
                where=f"data.{key}",
                next=f"write one of its codes, such as {known}",
            )
        setattr(tokenizer, name, code)


def _code_id(tokenizer: PreTrainedTokenizerBase, code: str) -> int | None:
    """The id of the token of a language; None for an unknown one."""
    own = getattr(tokenizer, "get_lang_id", None)  # M2M100 encloses its codes
    if own is not None:
        return int(own(code)) if code in tokenizer.lang_code_to_token else None
    found = tokenizer.convert_tokens_to_ids(code)
    return None if found in (None, tokenizer.unk_token_id) else int(found)


def _codes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The codes of the languages of a tokenizer."""
    known = getattr(tokenizer, "lang_code_to_token", None)
    return list(known or [each for each in tokenizer.all_special_tokens if each[0] != "<"])
