"""Prompts as token ids: with chat template, within the context, each with its own random state."""

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
from llmkit.inference.requests import PromptRequest
from llmkit.models import chat_template
from llmkit.models.control_tokens import control_tokens
from llmkit.models.tokenizer import prompt_ids
from llmkit.storage.strict_json import plain


@dataclass(frozen=True)
class Prompt:
    """A prompt, encoded for a model."""

    text: str
    ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    occurrence: int = 0
    """The number of earlier prompts with the same ids and seed."""
    cut: int = 0
    """Number of tokens cut from the left."""
    limit: int | None = None
    """The model's maximum number of positions, if any."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The columns of the prompt's row that the result repeats."""

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of the prompt and its continuation together."""
        length = len(self.ids) + self.max_new_tokens
        return length if self.limit is None else min(length, self.limit)

    def generator(self, index: int) -> torch.Generator:
        """The random generator of sample `index`.

        It depends only on the seed and the prompt, not on the rest of the batch, the position of
        the prompt, or the number of processes.
        """
        key = repr((self.seed, self.ids, self.occurrence, index))
        seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        return torch.Generator().manual_seed(seed >> 1)


def encode_prompts(
    requests: Sequence[PromptRequest],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    settings: GenerationConfig,
    seed: int,
    seen: Counter[tuple[int, ...]] | None = None,
) -> list[Prompt]:
    """Encodes the prompts of requests in order; `seen` counts earlier prompts.

    Raises DataError for an empty prompt if the tokenizer has no begin token, and for one that
    leaves no room in the context unless `truncate_prompt` cuts it; ConfigError for a chat without a
    template.
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
    request: PromptRequest,
    ids: tuple[int, ...],
    config: PretrainedConfig,
    settings: GenerationConfig,
    seed: int,
) -> Prompt:
    """The prompt of an encoded request, cut if necessary and `truncate_prompt` allows it."""
    limit = context(config)
    max_new = request.max_new_tokens or settings.max_new_tokens
    kept = _fit(ids, max_new, limit, request, settings)
    _check_ids(kept, config, request)
    own = seed if request.seed is None else request.seed
    cut = len(ids) - len(kept)
    columns = plain(dict(request.extra))
    return Prompt(request.prompt, kept, own, max_new, cut=cut, limit=limit, columns=columns)


def chat_ids(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The ids of a conversation up to the next assistant message; ConfigError if no template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "the model has no chat template: it continues text and does not chat",
            where="generation.chat",
            next="use `llmkit generate` without --chat, or a model that was tuned to chat",
        )
    try:
        text = chat_template.render_chat(tokenizer, messages, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it may raise anything
        raise ConfigError(
            f"the chat template rejects the conversation: {error}", where="chat_template"
        ) from error
    return control_tokens(tokenizer).ids_of_rendered(text)


def context(config: PretrainedConfig) -> int | None:
    """The maximum number of tokens that the model can see, if limited."""
    return getattr(config, "max_position_embeddings", None)


def _ids(
    request: PromptRequest, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
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
            "the prompt is empty, and the tokenizer has no begin-of-text token",
            where=request.where,
            next="give the prompt at least one character",
        )
    return (tokenizer.bos_token_id,)


def _fit(
    ids: tuple[int, ...],
    max_new: int,
    limit: int | None,
    request: PromptRequest,
    settings: GenerationConfig,
) -> tuple[int, ...]:
    if limit is None or len(ids) < limit:
        return ids
    if not settings.truncate_prompt:
        raise DataError(
            f"the prompt has {len(ids)} tokens, but the context holds {limit}, new tokens included",
            where=request.where,
            next="shorten it, or set generation.truncate_prompt=true to cut from the left",
        )
    if max_new >= limit:
        raise ConfigError(
            f"{max_new} new tokens leave no room for a prompt: the context holds {limit}",
            where="generation.max_new_tokens",
            next="lower it",
        )
    return ids[max_new - limit :]


def _check_ids(ids: tuple[int, ...], config: PretrainedConfig, request: PromptRequest) -> None:
    if max(ids) >= config.vocab_size:
        raise DataError(
            f"the tokenizer gives id {max(ids)}, the model has {config.vocab_size} embeddings",
            where=request.where,
            next="use the tokenizer that belongs to the model",
        )
