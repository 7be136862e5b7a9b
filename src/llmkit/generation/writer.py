"""One text while it is being written: its tokens, its random numbers, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import LogitsProcessorList

from llmkit.config.schema import GenerationConfig
from llmkit.errors import DataError
from llmkit.generation import constraints, draws, rules
from llmkit.generation.prompts import Prompt
from llmkit.generation.sample import Candidate, FinishReason, Sample, Step
from llmkit.generation.transcript import Transcript


class Desk:
    """What all texts of a job share: model, tokenizer, settings, and what follows from them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationConfig,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        own = getattr(model, "generation_config", None)
        ends = own.eos_token_id if own is not None else model.config.eos_token_id
        self.ends = rules.end_ids(ends, tokenizer.eos_token_id)
        self.bad_words = rules.bad_word_ids(settings.bad_words, tokenizer)
        self.constrain = constraints.constrain(settings, tokenizer, self.ends)
        self.warpers = draws.warpers(settings)


class Writer:
    """One sample of one prompt."""

    def __init__(self, desk: Desk, prompt: Prompt, index: int) -> None:
        settings = desk.settings
        self.desk, self.prompt, self.index = desk, prompt, index
        self.tokens: list[int] = []
        self.logprob = 0.0
        self.steps: list[Step] = []
        self.ended: FinishReason | None = None
        self.transcript = Transcript(desk.tokenizer, prompt.ids, settings.stop)
        self.random = prompt.generator(index)
        self.rules: LogitsProcessorList = rules.history_rules(
            settings, len(prompt.ids), desk.bad_words, desk.ends
        )
        self.constraint = desk.constrain(prompt) if desk.constrain else None

    def restricted(self, scores: Tensor) -> Tensor:
        """The logits [1, vocabulary] of the next token after this text's own rules."""
        if self.rules:
            ids = torch.tensor([[*self.prompt.ids, *self.tokens]], device=scores.device)
            scores = self.rules(ids, scores)
        if self.constraint is not None:
            scores = rules.restrict(scores, self.constraint)
        return scores

    def uniform(self) -> float:
        """The next random number of this sample."""
        return float(torch.rand((), generator=self.random, dtype=torch.float64))

    def take(self, token: int, logprob: float) -> None:
        """Adds a token and sees whether the text ends with it."""
        self.tokens.append(token)
        self.logprob += logprob
        if token in self.desk.ends:
            self.ended = "eos"
            return
        self.transcript.take(token)
        if self.constraint is not None:
            self.constraint.take(token)
        if self.transcript.stopped or (self.constraint and self.constraint.complete()):
            self.ended = "stop"
        elif len(self.tokens) >= self.prompt.max_new_tokens:
            self.ended = "length"
        elif len(self.prompt.ids) + len(self.tokens) == self.prompt.limit:
            self.ended = "context"

    def sample(self) -> Sample:
        """The finished sample."""
        assert self.ended is not None
        self.transcript.close()
        return Sample(
            prompt=self.prompt,
            index=self.index,
            text=self.transcript.text,
            tokens=tuple(self.tokens),
            finish_reason=self.ended,
            logprob=self.logprob,
            steps=tuple(self.steps),
        )


def advance(desk: Desk, writers: Sequence[Writer], logits: Tensor) -> None:
    """Gives each text its next token from the model's logits [texts, vocabulary].

    Raises DataError where the model computes no numbers.
    """
    logits = logits.float()
    totals = logits.logsumexp(-1)
    if not totals.isfinite().all():
        raise DataError(
            "the model computes numbers that are not finite",
            where="model.name_or_path",
            next="check its weights; in bf16, try generation.precision=fp32",
        )
    writers, logits, totals, scores = _restricted(writers, logits, totals)
    if not writers:
        return
    scores = desk.warpers(None, scores)
    if desk.settings.do_sample:
        uniforms = torch.tensor([w.uniform() for w in writers], dtype=torch.float64)
        tokens = draws.draw(scores, uniforms.to(scores.device))
    else:
        tokens = scores.argmax(-1)
    logprobs = (logits.gather(1, tokens[:, None]).squeeze(1) - totals).tolist()
    for row, (writer, token) in enumerate(zip(writers, tokens.tolist(), strict=True)):
        if desk.settings.explain:
            writer.steps.append(_step(desk, token, logits[row], scores[row]))
        writer.take(token, logprobs[row])


def _restricted(
    writers: Sequence[Writer], logits: Tensor, totals: Tensor
) -> tuple[Sequence[Writer], Tensor, Tensor, Tensor]:
    """The texts that have a token left to take, with their logits, before and after their rules."""
    if not any(writer.rules or writer.constraint for writer in writers):
        return writers, logits, totals, logits
    rows = [w.restricted(row[None]) for w, row in zip(writers, logits, strict=True)]
    scores = torch.cat(rows)
    free = (scores > draws.RULED_OUT).any(-1)
    for writer, is_free in zip(writers, free.tolist(), strict=True):
        if not is_free:
            writer.ended = "nothing_allowed"
    going = [writer for writer in writers if writer.ended is None]
    return going, logits[free], totals[free], scores[free]


def _step(desk: Desk, token: int, logits: Tensor, scores: Tensor) -> Step:
    before, after = logits.softmax(-1), scores.softmax(-1)

    def candidate(id: int) -> Candidate:
        text = desk.tokenizer.decode([id], clean_up_tokenization_spaces=False)
        return Candidate(id, text, float(before[id]), float(after[id]))

    likeliest = before.topk(min(desk.settings.explain, len(before))).indices.tolist()
    return Step(candidate(token), [candidate(id) for id in likeliest])
