"""Beam search by transformers, one prompt at a time, so that nothing is padded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import GenerationConfig as BeamConfig

from llmkit.inference.batching import Engine
from llmkit.inference.detokenizer import Detokenizer
from llmkit.inference.generated import FinishReason, Sample
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler


@torch.inference_mode()
def search(engine: Engine, prompt: Prompt, sampler: Sampler) -> list[Sample]:
    """The best `num_return_sequences` of `num_beams` continuations, best first."""
    ids = torch.tensor([prompt.ids], device=engine.model.device)
    stop: dict[str, Any] = {}
    if sampler.settings.stop:
        stop = {"stop_strings": list(sampler.settings.stop), "tokenizer": engine.tokenizer}
    found = engine.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_config(prompt, sampler),
        logits_processor=sampler.history_rules(len(prompt.ids)),
        **stop,
    )
    return [
        _sample(engine, prompt, sampler, index, row[len(prompt.ids) :].tolist())
        for index, row in enumerate(found)
    ]


def _config(prompt: Prompt, sampler: Sampler) -> BeamConfig:
    room = prompt.max_length - len(prompt.ids)
    ends = list(sampler.end_ids)
    return BeamConfig(
        num_beams=sampler.settings.num_beams,
        num_return_sequences=sampler.settings.num_return_sequences,
        do_sample=False,
        max_new_tokens=room,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )


def _sample(
    engine: Engine, prompt: Prompt, sampler: Sampler, index: int, tokens: list[int]
) -> Sample:
    ends = [place for place, token in enumerate(tokens) if token in sampler.end_ids]
    tokens = tokens[: ends[0] + 1] if ends else tokens
    detokenizer = Detokenizer(engine.tokenizer, prompt.ids, sampler.settings.stop)
    taken: list[int] = []
    for token in tokens:
        taken.append(token)
        if token not in sampler.end_ids:
            detokenizer.append(token)
        if detokenizer.stopped:
            break
    detokenizer.close()
    reason: FinishReason = "length" if len(tokens) >= prompt.max_new_tokens else "context"
    if detokenizer.stopped:
        reason = "stop"
    elif ends:
        reason = "eos"
    logprob = _logprob(engine.model, prompt, taken)
    return Sample(prompt, index, detokenizer.text, tuple(taken), reason, logprob)


def _logprob(model: PreTrainedModel, prompt: Prompt, tokens: list[int]) -> float:
    row = torch.tensor([[*prompt.ids, *tokens]], device=model.device)
    logits = model(input_ids=row, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(1, row[0, len(prompt.ids) :, None])
    return float(chosen.sum())
