"""Constraints on generated text: a choice of strings, a regular expression, or a JSON schema."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmkit import extras
from llmkit.config.schema import GenerationConfig
from llmkit.errors import ConfigError, InputNotFound
from llmkit.inference.prompts import Prompt
from llmkit.models.control_tokens import control_tokens
from llmkit.models.tokenizer import prompt_ids


class Constraint(Protocol):
    """The constraint on one text; it is advanced by every token."""

    def allowed(self) -> Sequence[int] | Tensor:
        """The allowed next tokens: ids, or a mask over the vocabulary."""

    def take(self, token: int) -> None:
        """Advances by an allowed token."""

    def complete(self) -> bool:
        """Whether no token may follow."""


Constrain = Callable[[Prompt], Constraint]
"""Makes a new constraint for a text that continues a prompt."""


class Choice:
    """One of several token sequences."""

    def __init__(self, choices: Sequence[tuple[int, ...]], ends: Sequence[int]) -> None:
        self.left, self.ends = list(choices), tuple(ends)
        self.taken = 0
        self.ended = False

    def allowed(self) -> Sequence[int]:
        """The next tokens of the remaining choices, and the end tokens if one is complete."""
        following = {ids[self.taken] for ids in self.left if len(ids) > self.taken}
        finished = any(len(ids) == self.taken for ids in self.left)
        return sorted(following | set(self.ends)) if finished else sorted(following)

    def take(self, token: int) -> None:
        """Keeps the choices that continue with this token."""
        place, self.taken = self.taken, self.taken + 1
        left = [ids for ids in self.left if len(ids) > place and ids[place] == token]
        self.ended, self.left = not left, left

    def complete(self) -> bool:
        """Whether one choice is complete and no other continues it."""
        return self.ended or all(len(ids) == self.taken for ids in self.left)


class Grammar:
    """A regular expression or JSON schema, enforced by llguidance."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def allowed(self) -> Tensor:
        """A mask of the tokens that keep the text valid."""
        mask = self.matcher.compute_bitmask()
        if self.matcher.is_error():
            reason = self.matcher.get_error().strip().splitlines()[0]
            raise ConfigError(f"llguidance cannot continue with this grammar: {reason}")
        words = torch.frombuffer(bytearray(mask), dtype=torch.int32)
        bits = words[:, None] >> torch.arange(32, dtype=torch.int32)
        return (bits & 1).flatten().bool()

    def take(self, token: int) -> None:
        """Advances by a token."""
        self.matcher.consume_token(token)

    def complete(self) -> bool:
        """Whether the text is valid and nothing can be added."""
        return bool(self.matcher.is_stopped())


def constrain(
    settings: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    schema: Mapping[str, Any] | None = None,
) -> Constrain | None:
    """The constraint of the settings, or that of a JSON schema itself; None without one.

    Raises ConfigError for choices that the tokenizer cannot encode or that are longer than
    `max_new_tokens`, and for an invalid grammar; UsageError if llguidance is not installed.
    """
    if settings.choices:
        _check_ends(settings.choices, ends)
        return lambda prompt: Choice(
            [_choice_ids(text, prompt, tokenizer) for text in settings.choices], ends
        )
    if settings.regex is None and settings.json_schema is None and schema is None:
        return None
    library = _library()
    matcher = library.LLMatcher(_token_table(tokenizer), _grammar(settings, library, schema))
    if error := matcher.get_error():
        key = "regex" if settings.regex is not None else "json_schema"
        raise ConfigError(
            f"llguidance does not accept this grammar: {error.strip().splitlines()[0]}",
            where=f"generation.{key}",
            next="correct it; look-around and back references are not supported",
        )
    return lambda prompt: Grammar(matcher.deep_copy())


def _choice_ids(text: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of a choice after a prompt: tokenized together if they split at the border."""
    together = prompt_ids(tokenizer, prompt.text + text)
    size = len(prompt.ids)
    ids = together[size:] if together[:size] == prompt.ids else ()
    if not ids:
        ids = control_tokens(tokenizer).ids(text)
    decoded = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    if decoded.strip() != text.strip():
        raise ConfigError(
            f"the tokenizer cannot encode {text!r}; it decodes to {decoded!r}",
            where="generation.choices",
            next="remove it, or spell it with characters that the tokenizer knows",
        )
    if len(ids) > prompt.max_new_tokens:
        raise ConfigError(
            f"{text!r} has {len(ids)} tokens, more than max_new_tokens",
            where="generation.choices",
            next=f"write generation.max_new_tokens={len(ids)} or more",
        )
    return ids


def _check_ends(choices: Sequence[str], ends: Sequence[int]) -> None:
    longer = [(a, b) for a in choices for b in choices if a != b and b.startswith(a)]
    if longer and not ends:
        raise ConfigError(
            f"{longer[0][0]!r} is a prefix of {longer[0][1]!r}, and the model has no end token",
            where="generation.choices",
            next="choose strings none of which is a prefix of another",
        )


def _library() -> Any:
    extras.require("llguidance", "grammar", "a grammar", "generation.regex, generation.json_schema")
    importlib.import_module("llguidance.hf")
    return importlib.import_module("llguidance")


@lru_cache(maxsize=8)
def _token_table(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokens as llguidance reads them (cached: building it takes longer than many texts)."""
    return _library().hf.from_tokenizer(tokenizer)


def _grammar(settings: GenerationConfig, library: Any, schema: Mapping[str, Any] | None) -> str:
    if settings.regex is not None:
        return str(library.LLMatcher.grammar_from_regex(settings.regex))
    if schema is None:
        schema = _read_schema(Path(str(settings.json_schema)))
    return str(library.LLMatcher.grammar_from_json_schema(schema))


def _read_schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputNotFound(
            f"the schema cannot be read: {error.strerror}",
            where=str(path),
            next="check generation.json_schema",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the schema is not JSON: {error}", where=str(path)) from error
