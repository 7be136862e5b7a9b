"""A served language model: from the body of a request to a job, with the settings of generation."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmkit.config import checks
from llmkit.config.schema import GenerationConfig
from llmkit.errors import LlmkitError
from llmkit.inference import prompts as prompting
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.serving.bodies import ChatBody, CompletionBody, Sampling
from llmkit.serving.engines.jobs import TextJob
from llmkit.serving.named_model import NamedModel
from llmkit.serving.refusals import Refusal, refusal_of_fault

_SAME = (
    "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "regex",
)  # fmt: skip
"""Fields that are keys of `generation` with the same meaning."""

_FIELDS = {"num_return_sequences": "n", "max_new_tokens": "max_tokens"}
"""Fields with another name than the key of `generation`."""

_OF_COMMANDS: Mapping[str, Any] = {
    "num_return_sequences": 1, "num_beams": 1, "choices": (), "regex": None, "json_schema": None,
    "chat": False, "system": None, "explain": 0,
}  # fmt: skip
"""Keys of `generation` that belong to other commands, if a config is shared with them."""

_SEEDS = 1 << 31


@dataclass(frozen=True)
class TextModel(NamedModel):
    """A loaded language model, as the handlers of requests use it."""

    engine: Engine
    settings: GenerationConfig
    """The settings of fields that a request does not have."""
    max_tokens: int
    """Maximum number of new tokens that a request may ask for."""
    warning: str | None
    """What every response states: that the other texts of its batch may have changed a text."""

    @property
    def context(self) -> int | None:
        """The maximum number of tokens of prompt and text together."""
        return prompting.context(self.engine.model.config)

    def completion_job(self, body: CompletionBody) -> TextJob:
        """The job of a completion; raises Refusal for one that cannot be carried out."""
        explain = 0 if body.logprobs is None else max(1, body.logprobs)
        settings = self._settings(body, body.max_tokens, explain)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        asked = [
            PromptRequest(text, "prompt" if len(texts) == 1 else f"prompt[{number}]")
            for number, text in enumerate(texts)
        ]
        model, seed = self.engine.model.config, _seed(body, settings)
        with _refusing():
            encoded = prompting.encode_prompts(
                asked, self.engine.tokenizer, model, settings, seed, Counter()
            )
        return self._job(body, asked, encoded, body.max_tokens, settings)

    def chat_job(self, body: ChatBody) -> TextJob:
        """The job of a chat; raises Refusal for one that cannot be carried out."""
        if not self.engine.tokenizer.chat_template:
            raise Refusal(
                f"the model {self.name!r} has no chat template; use /v1/completions",
                param="model",
                code="no_chat_template",
            )
        explain = max(1, body.top_logprobs or 0) if body.logprobs else 0
        if body.top_logprobs is not None and not body.logprobs:
            raise Refusal("top_logprobs: needs logprobs", param="top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise Refusal("max_tokens: is also given as max_completion_tokens", param="max_tokens")
        most = body.max_completion_tokens or body.max_tokens
        settings = self._settings(body, most, explain)
        messages = [message.as_message() for message in body.messages]
        asked, model = PromptRequest(messages[-1]["content"], "messages"), self.engine.model.config
        with _refusing():
            ids = prompting.chat_ids(messages, self.engine.tokenizer)
            prompt = prompting.fitted(asked, ids, model, settings, _seed(body, settings))
        return self._job(body, [asked], [prompt], most, settings)

    def _job(
        self,
        body: Sampling,
        asked: Sequence[PromptRequest],
        prompts: Sequence[Prompt],
        most: int | None,
        settings: GenerationConfig,
    ) -> TextJob:
        """The job of encoded prompts; refuses more tokens than there is room for in the context."""
        for request, prompt in zip(asked, prompts, strict=True):
            size, limit = len(prompt.ids), prompt.limit
            if limit is not None and most is not None and size + most > limit:
                raise Refusal(
                    f"{request.where}: the prompt has {size} tokens and max_tokens is {most}, but "
                    f"the context of {self.name!r} holds {limit}",
                    param=request.where,
                    code="context_length_exceeded",
                )
        with _refusing():
            sampler = self.engine.sampler(settings, _schema(body))
        return TextJob(prompts, sampler, is_streamed=body.stream)

    def _settings(self, body: Sampling, most: int | None, explain: int) -> GenerationConfig:
        """The settings of a request."""
        if most is not None and most > self.max_tokens:
            allowed = f"this server allows {self.max_tokens} (serve.max_new_tokens)"
            raise Refusal(f"max_tokens: is {most}; {allowed}", param="max_tokens")
        given = {name: getattr(body, name) for name in _SAME}
        given["bad_words"] = None if body.bad_words is None else tuple(body.bad_words)
        given["choices"] = None if body.choices is None else tuple(body.choices)
        if body.stop is not None:
            given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        if body.temperature is not None:
            given["do_sample"] = body.temperature > 0
            given["temperature"] = body.temperature or None
        chosen = {name: value for name, value in given.items() if value is not None}
        chosen |= {"num_return_sequences": body.n, "explain": explain}
        if most is not None:
            chosen["max_new_tokens"] = most
        settings = self.settings.changed(**{**_OF_COMMANDS, **chosen})
        _check(settings, body)
        return settings


def _seed(body: Sampling, settings: GenerationConfig) -> int:
    """The seed of a request: its own, that of the server, or a random one."""
    if body.seed is not None:
        return body.seed
    return secrets.randbelow(_SEEDS) if settings.seed is None else settings.seed


def _schema(body: Sampling) -> Mapping[str, Any] | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise Refusal("response_format.json_schema: is missing", param="response_format")
    if not form.json_schema.strict:
        raise Refusal(
            "response_format.json_schema.strict: only true is supported", param="response_format"
        )
    return form.json_schema.schema_


def _check(settings: GenerationConfig, body: Sampling) -> None:
    """Raises Refusal for settings that contradict each other."""
    forms = [name for name in ("choices", "regex", "response_format") if getattr(body, name)]
    if len(forms) > 1:
        message = f"{forms[1]}: cannot be combined with {forms[0]}"
        raise Refusal(message, param=forms[1])
    if body.stream_options is not None and not body.stream:
        raise Refusal("stream_options: needs stream", param="stream_options")
    for key, what, _ in checks.of_generation(settings, is_chat=False):
        name = key.removeprefix("generation.")
        field = _FIELDS.get(name, name)
        message = what.replace("generation.max_new_tokens", "max_tokens")
        raise Refusal(f"{field}: {message}", param=field)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raises Refusal for a prompt or a form that llmkit does not accept."""
    try:
        yield
    except LlmkitError as fault:
        raise refusal_of_fault(fault) from fault
