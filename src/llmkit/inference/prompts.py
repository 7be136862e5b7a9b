"""Prompts as token ids: with chat template, within the context, each with its own randomness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llmkit.config.schema import GenerationConfig
from llmkit.errors import ConfigError, DataError
from llmkit.inference.requests import Request
from llmkit.models import chat_template
from llmkit.models.control_tokens import control_tokens
from llmkit.models.tokenizer import prompt_ids
from llmkit.reporting.predictions import plain


@dataclass(frozen=True)
class Prompt:
    """What the model reads before it generates."""

    text: str
    ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    occurrence: int = 0
    """How many prompts with the same ids and seed stand before this one."""
    cut: int = 0
    """Tokens that were cut from its left."""
    limit: int | None = None
    """Number of positions of the model, if that is limited."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the result repeats of the prompt's row."""

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and text together."""
        length = len(self.ids) + self.max_new_tokens
        return length if self.limit is None else min(length, self.limit)

    def generator(self, index: int) -> torch.Generator:
        """The random numbers of sample `index`.

        They depend on nothing but seed and prompt: neither on the rest of the batch, nor on the
        place of the prompt, nor on the number of processes.
        """
        key = repr((self.seed, self.ids, self.occurrence, index))
        seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        return torch.Generator().manual_seed(seed >> 1)


def encode(
    requests: Sequence[Request],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    settings: GenerationConfig,
    seed: int,
    seen: Counter[tuple[int, ...]] | None = None,
) -> list[Prompt]:
    """The prompts of the requests, in their order; `seen` counts those before them.

    Raises DataError for an empty prompt without a begin token and for one that leaves no room in
    the context, unless `truncate_prompt` cuts it, and ConfigError for a chat without a template.
    """
    seen = Counter() if seen is None else seen
    prompts = []
    for request in requests:
        ids = _ids(request, tokenizer, settings)
        prompt = fitted(request, ids, config, settings, seed)
        key = (prompt.seed, *prompt.ids)
        prompts.append(replace(prompt, occurrence=seen[key]))
        seen[key] += 1
    return prompts


def fitted(
    request: Request,
    ids: tuple[int, ...],
    config: PretrainedConfig,
    settings: GenerationConfig,
    seed: int,
) -> Prompt:
    """The prompt of a request whose ids are known, cut where that is needed and asked for."""
    limit = context(config)
    most = request.max_new_tokens or settings.max_new_tokens
    kept = _fit(ids, most, limit, request, settings)
    _check_ids(kept, config, request)
    own = seed if request.seed is None else request.seed
    cut = len(ids) - len(kept)
    columns = plain(dict(request.extra))
    return Prompt(request.prompt, kept, own, most, cut=cut, limit=limit, columns=columns)


def chat_ids(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The ids of a conversation up to where the assistant speaks; ConfigError without template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "the model continues text and does not answer: it has no chat template",
            where="generation.chat",
            next="use `llmkit generate` without --chat, or a model that was tuned to chat",
        )
    try:
        text = chat_template.render_chat(tokenizer, messages, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it may raise anything
        raise ConfigError(
            f"the chat template refuses the conversation: {error}", where="chat_template"
        ) from error
    return control_tokens(tokenizer).ids_of_rendered(text)


def context(config: PretrainedConfig) -> int | None:
    """How many tokens the model can see, if that is limited."""
    return getattr(config, "max_position_embeddings", None)


def _ids(
    request: Request, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
) -> tuple[int, ...]:
    if settings.chat:
        system = request.system if request.system is not None else settings.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        return chat_ids([*messages, {"role": "user", "content": request.prompt}], tokenizer)
    if request.system is not None:
        raise DataError("a system message needs a chat", where=request.where, next="add `--chat`")
    if ids := prompt_ids(tokenizer, request.prompt, settings.split_special_tokens):
        return ids
    if tokenizer.bos_token_id is None:
        raise DataError(
            "an empty prompt, and the tokenizer has no token that begins a text",
            where=request.where,
            next="give the prompt at least one character",
        )
    return (tokenizer.bos_token_id,)


def _fit(
    ids: tuple[int, ...],
    most: int,
    limit: int | None,
    request: Request,
    settings: GenerationConfig,
) -> tuple[int, ...]:
    if limit is None or len(ids) < limit:
        return ids
    if not settings.truncate_prompt:
        raise DataError(
            f"the prompt has {len(ids)} tokens, the model sees {limit} with what it writes",
            where=request.where,
            next="shorten it, or cut such prompts from the left with "
            "generation.truncate_prompt=true",
        )
    if most >= limit:
        raise ConfigError(
            f"{most} new tokens leave no room for a prompt: the model sees {limit}",
            where="generation.max_new_tokens",
            next="lower it",
        )
    return ids[most - limit :]


def _check_ids(ids: tuple[int, ...], config: PretrainedConfig, request: Request) -> None:
    if max(ids) >= config.vocab_size:
        raise DataError(
            f"the tokenizer gives id {max(ids)}, the model has {config.vocab_size} embeddings",
            where=request.where,
            next="use the tokenizer that belongs to the model",
        )
