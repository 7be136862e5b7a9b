"""What a request for text asks for: its prompts, and the settings of generation that it gives."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmkit.config import checks
from llmkit.config.schema import GenerationConfig
from llmkit.errors import LlmkitError
from llmkit.inference.requests import PromptRequest
from llmkit.serving.bodies import CompletionBody, Sampling
from llmkit.serving.refusals import Refusal, refusal_of_fault

_SAME = (
    "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "regex",
)  # fmt: skip
"""Fields that are keys of `generation` with the same meaning."""

_FIELDS = {"num_return_sequences": "n", "max_new_tokens": "max_tokens"}
"""Fields with another name than the key of `generation`."""

_SEEDS = 1 << 31


def prompts_of(body: CompletionBody) -> list[PromptRequest]:
    """The prompts of a body, with the field that each comes from."""
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return [
        PromptRequest(text, "prompt" if len(texts) == 1 else f"prompt[{number}]")
        for number, text in enumerate(texts)
    ]


def chosen_settings(body: Sampling, most: int | None, allowed: int) -> dict[str, Any]:
    """The settings of generation that a body gives; raises Refusal for more tokens than are
    allowed."""
    if most is not None and most > allowed:
        limit = f"this server allows {allowed} (serve.max_new_tokens)"
        raise Refusal(f"max_tokens: is {most}; {limit}", param="max_tokens")
    given = {name: getattr(body, name) for name in _SAME}
    given |= {"max_new_tokens": most, "num_return_sequences": body.n}
    given["bad_words"] = None if body.bad_words is None else tuple(body.bad_words)
    given["choices"] = None if body.choices is None else tuple(body.choices)
    if body.stop is not None:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.temperature is not None:
        given["do_sample"] = body.temperature > 0
        given["temperature"] = body.temperature or None
    return {name: value for name, value in given.items() if value is not None}


def seed_of(body: Sampling, settings: GenerationConfig) -> int:
    """The seed of a request: its own, that of the server, or a random one."""
    if body.seed is not None:
        return body.seed
    return secrets.randbelow(_SEEDS) if settings.seed is None else settings.seed


def check_settings(settings: GenerationConfig, body: Sampling) -> None:
    """Raises Refusal for settings that contradict each other."""
    forms = [name for name in ("choices", "regex", "response_format") if getattr(body, name)]
    if len(forms) > 1:
        message = f"{forms[1]}: cannot be combined with {forms[0]}"
        raise Refusal(message, param=forms[1])
    if body.stream_options is not None and not body.stream:
        raise Refusal("stream_options: needs stream", param="stream_options")
    words = {"generation.max_new_tokens": "max_tokens", "generation.num_beams": "the beams"}
    for key, message, _ in checks.of_generation(settings, is_chat=False):
        name = key.removeprefix("generation.")
        field = _FIELDS.get(name, name)
        for own, word in words.items():
            message = message.replace(own, word)
        raise Refusal(f"{field}: {message}", param=field)


@contextmanager
def refusing() -> Iterator[None]:
    """Raises Refusal for a prompt or a form that llmkit does not accept."""
    try:
        yield
    except LlmkitError as fault:
        raise refusal_of_fault(fault) from fault
