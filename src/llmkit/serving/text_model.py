"""A served language model: from the body of a request to a job, with the settings of generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.config.schema import GenerationConfig
from llmkit.inference import prompts as prompting
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.serving.bodies import ChatBody, CompletionBody, Sampling
from llmkit.serving.engines.jobs import TextJob
from llmkit.serving.named_model import WritingModel
from llmkit.serving.refusals import Refusal
from llmkit.serving.requested import (
    check_settings,
    chosen_settings,
    prompts_of,
    refusing,
    seed_of,
)

_OF_COMMANDS: Mapping[str, Any] = {
    "num_return_sequences": 1, "num_beams": 1, "choices": (), "regex": None, "json_schema": None,
    "chat": False, "system": None, "explain": 0,
}  # fmt: skip
"""Keys of `generation` that belong to other commands, if a config is shared with them."""


@dataclass(frozen=True)
class TextModel(WritingModel):
    """A loaded language model, as the handlers of requests use it."""

    engine: Engine

    @property
    def facts(self) -> Mapping[str, Any]:
        """The maximum number of tokens of prompt and text together."""
        return {"context": prompting.context(self.engine.model.config)}

    def completion_job(self, body: CompletionBody) -> TextJob:
        """The job of a completion; raises Refusal for one that cannot be carried out."""
        explain = 0 if body.logprobs is None else max(1, body.logprobs)
        settings = self._settings(body, body.max_tokens, explain)
        asked = prompts_of(body)
        model, seed = self.engine.model.config, seed_of(body, settings)
        with refusing():
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
        with refusing():
            ids = prompting.chat_ids(messages, self.engine.tokenizer)
            prompt = prompting.fitted(asked, ids, model, settings, seed_of(body, settings))
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
        with refusing():
            sampler = self.engine.sampler(settings, _schema(body))
        return TextJob(prompts, sampler, is_streamed=body.stream)

    def _settings(self, body: Sampling, most: int | None, explain: int) -> GenerationConfig:
        """The settings of a request."""
        chosen = chosen_settings(body, most, self.max_tokens)
        settings = self.settings.changed(**{**_OF_COMMANDS, **chosen, "explain": explain})
        check_settings(settings, body)
        return settings


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
