"""Beam search, which transformers does well: one prompt at a time, so that none is padded."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.configuration_utils import GenerationConfig as BeamConfig
from transformers.generation.logits_process import LogitsProcessorList

from llmkit.inference import rules
from llmkit.inference.prompts import Prompt
from llmkit.inference.sample import FinishReason, Sample
from llmkit.inference.transcript import Transcript
from llmkit.inference.writer import Desk


@torch.inference_mode()
def search(desk: Desk, prompt: Prompt) -> list[Sample]:
    """The best `num_return_sequences` of `num_beams` continuations, the best first."""
    ids = torch.tensor([prompt.ids], device=desk.model.device)
    own_rules = rules.history_rules(desk.settings, len(prompt.ids), desk.ends, desk.model.device)
    stop: dict[str, Any] = {}
    if desk.settings.stop:
        stop = {"stop_strings": list(desk.settings.stop), "tokenizer": desk.tokenizer}
    found = desk.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_config(desk, prompt),
        logits_processor=LogitsProcessorList(own_rules),
        **stop,
    )
    return [
        _sample(desk, prompt, index, row[len(prompt.ids) :].tolist())
        for index, row in enumerate(found)
    ]


def _config(desk: Desk, prompt: Prompt) -> BeamConfig:
    room = prompt.max_new_tokens
    if prompt.limit is not None:
        room = min(room, prompt.limit - len(prompt.ids))
    ends = list(desk.ends)
    return BeamConfig(
        num_beams=desk.settings.num_beams,
        num_return_sequences=desk.settings.num_return_sequences,
        do_sample=False,
        max_new_tokens=room,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )


def _sample(desk: Desk, prompt: Prompt, index: int, tokens: list[int]) -> Sample:
    ends = [place for place, token in enumerate(tokens) if token in desk.ends]
    tokens = tokens[: ends[0] + 1] if ends else tokens
    transcript = Transcript(desk.tokenizer, prompt.ids, desk.settings.stop)
    taken: list[int] = []
    for token in tokens:
        taken.append(token)
        if token not in desk.ends:
            transcript.take(token)
        if transcript.stopped:
            break
    transcript.close()
    reason: FinishReason = "length" if len(tokens) >= prompt.max_new_tokens else "context"
    if transcript.stopped:
        reason = "stop"
    elif ends:
        reason = "eos"
    logprob = _logprob(desk, prompt, taken)
    return Sample(prompt, index, transcript.text, tuple(taken), reason, logprob)


def _logprob(desk: Desk, prompt: Prompt, tokens: list[int]) -> float:
    row = torch.tensor([[*prompt.ids, *tokens]], device=desk.model.device)
    logits = desk.model(input_ids=row, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(1, row[0, len(prompt.ids) :, None])
    return float(chosen.sum())
