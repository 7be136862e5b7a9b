"""A served encoder-decoder model: from the body of a request to a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.inference.encoder_decoder import TargetGenerator, encode_sources, source_limit
from llmkit.serving.bodies import ChatBody, CompletionBody
from llmkit.serving.engines.jobs import TargetJob
from llmkit.serving.named_model import WritingModel
from llmkit.serving.refusals import Refusal
from llmkit.serving.requested import (
    check_settings,
    chosen_settings,
    prompts_of,
    refusing,
    seed_of,
)

_OF_OTHERS = ("logprobs", "bad_words", "choices", "regex", "response_format")
"""Fields that only models have that continue their prompts."""


@dataclass(frozen=True)
class TargetModel(WritingModel):
    """A loaded encoder-decoder model, as the handlers of requests use it."""

    generator: TargetGenerator
    """Writes with the settings of fields that a request does not have."""

    paths = "/v1/completions"
    cut = "at the end"

    @property
    def facts(self) -> Mapping[str, Any]:
        """The maximum number of tokens of a source."""
        return {"context": source_limit(self.generator.model.config)}

    def completion_job(self, body: CompletionBody) -> TargetJob:
        """The job of sources; raises Refusal for one that cannot be carried out."""
        for name in _OF_OTHERS:
            if getattr(body, name) is not None:
                message = f"{name}: does not work with {self.name!r}, an encoder-decoder model"
                raise Refusal(message, param=name, code="unsupported_field")
        chosen = chosen_settings(body, body.max_tokens, self.max_tokens)
        model, pairs = self.generator.model, self.generator.pairs
        with refusing():
            generator = TargetGenerator(model, pairs, self.settings.changed(**chosen))
            settings = generator.settings
            check_settings(settings, body)
            limited = settings.changed(max_new_tokens=min(settings.max_new_tokens, self.max_tokens))
            seed = seed_of(body, settings)
            prompts = encode_sources(
                prompts_of(body), pairs, model.config, limited, seed, Counter()
            )
        return TargetJob(prompts, generator.sampler, is_streamed=body.stream, generator=generator)

    def chat_job(self, body: ChatBody) -> TargetJob:
        """Raises Refusal: an encoder-decoder model reads one source."""
        message = f"the model {self.name!r} holds no conversations; use /v1/completions"
        raise Refusal(message, param="model", code="no_chat_template")
