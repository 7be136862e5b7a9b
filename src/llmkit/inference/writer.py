"""One text while it is being written: its tokens, its random numbers, and when it ends."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import LogitsProcessorList

from llmkit.config.schema import GenerationConfig
from llmkit.errors import DataError
from llmkit.inference import constraints, draws, rules
from llmkit.inference.prompts import Prompt
from llmkit.inference.sample import Candidate, FinishReason, Sample, Step
from llmkit.inference.transcript import Transcript
from llmkit.models import rope


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
        self.constrain = constraints.constrain(settings, tokenizer, self.ends)
        self.warpers = draws.warpers(settings)
        self.accepts = frozenset(inspect.signature(model.forward).parameters)
        """What the model's forward pass takes."""
        self.border = rope.border(model)
        """Tokens beyond which a text has other positions, see `rope.border`."""


class Writer:
    """One sample of one prompt; `is_heard` while it is written, or read when it is done."""

    def __init__(self, desk: Desk, prompt: Prompt, index: int, is_heard: bool = False) -> None:
        settings = desk.settings
        self.desk, self.prompt, self.index = desk, prompt, index
        self.tokens: list[int] = []
        self.logprob = 0.0
        self.steps: list[Step] = []
        self.ended: FinishReason | None = None
        at_once = is_heard or bool(settings.stop or settings.bad_words)
        self.transcript = Transcript(desk.tokenizer, prompt.ids, settings.stop, at_once)
        self.random = prompt.generator(index)
        self.rules: LogitsProcessorList = rules.history_rules(
            settings, len(prompt.ids), desk.ends, desk.model.device
        )
        self.constraint = desk.constrain(prompt) if desk.constrain else None
        self.refused: list[int] = []
        """Tokens that would write a bad word here."""

    @property
    def is_bound(self) -> bool:
        """Whether its next token hangs on more than the model."""
        return bool(self.rules or self.constraint or self.refused)

    def restricted(self, scores: Tensor) -> Tensor:
        """The logits [1, vocabulary] of the next token after this text's own rules."""
        if self.rules:
            ids = torch.tensor([[*self.prompt.ids, *self.tokens]], device=scores.device)
            scores = self.rules(ids, scores)
        if self.constraint is not None:
            scores = rules.restrict(scores, self.constraint)
        if self.refused:
            scores = scores.clone()
            scores[:, self.refused] = draws.RULED_OUT
        return scores

    def refuses(self, token: int) -> bool:
        """Whether a token would write a bad word; it is not offered again then.

        The text decides: a word can be spelled with many tokens, and a ban of some misses others.
        """
        words = self.desk.settings.bad_words
        if not words:
            return False
        written = self.transcript.with_next(token, before=max(map(len, words)) - 1)
        if not any(word in written for word in words):
            return False
        self.refused.append(token)
        return True

    def uniform(self) -> float:
        """The next random number of this sample."""
        return float(torch.rand((), generator=self.random, dtype=torch.float64))

    def take(self, token: int, logprob: float) -> None:
        """Adds a token and sees whether the text ends with it."""
        self.refused = []
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
    logprobs = logits.log_softmax(-1)
    if logprobs[:, 0].isnan().any():  # one number that is none spreads over its row
        raise DataError(
            "the model computes numbers that are not finite",
            where="model.name_or_path",
            next="check its weights; in bf16, try generation.precision=fp32",
        )
    state = _State(writers, logits, logprobs)
    while state.writers:
        state = _advance_most(desk, state)


class _State(NamedTuple):
    """Texts that want a token: the model's logits and log-probabilities [texts, vocabulary]."""

    writers: Sequence[Writer]
    logits: Tensor
    logprobs: Tensor


def _advance_most(desk: Desk, state: _State) -> _State:
    """Gives each text a token; the texts that may not have theirs come back."""
    (writers, logits, logprobs), scores = _restricted(state)
    if not writers:
        return _State((), logits, logprobs)
    scores = desk.warpers(None, scores)
    if desk.settings.do_sample:
        uniforms = torch.tensor([w.uniform() for w in writers], dtype=torch.float64)
        tokens = draws.draw(scores, uniforms.to(scores.device))
    else:
        tokens = scores.argmax(-1)
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1).tolist()
    refused = []
    for row, (writer, token) in enumerate(zip(writers, tokens.tolist(), strict=True)):
        if writer.refuses(token):
            refused.append(row)
            continue
        if desk.settings.explain:
            writer.steps.append(_step(desk, token, logits[row], scores[row]))
        writer.take(token, chosen[row])
    return _State([writers[row] for row in refused], logits[refused], logprobs[refused])


def _restricted(state: _State) -> tuple[_State, Tensor]:
    """The texts that have a token left to take, and their logits after their own rules."""
    writers, logits, logprobs = state
    if not any(writer.is_bound for writer in writers):
        return state, logits
    rows = [w.restricted(row[None]) for w, row in zip(writers, logits, strict=True)]
    scores = torch.cat(rows)
    free = (scores > draws.RULED_OUT).any(-1)
    for writer, is_free in zip(writers, free.tolist(), strict=True):
        if not is_free:
            writer.ended = "nothing_allowed"
    going = [writer for writer in writers if writer.ended is None]
    return _State(going, logits[free], logprobs[free]), scores[free]


def _step(desk: Desk, token: int, logits: Tensor, scores: Tensor) -> Step:
    before, after = logits.softmax(-1), scores.softmax(-1)

    def candidate(id: int) -> Candidate:
        text = desk.tokenizer.decode([id], clean_up_tokenization_spaces=False)
        return Candidate(id, text, float(before[id]), float(after[id]))

    likeliest = before.topk(min(desk.settings.explain, len(before))).indices.tolist()
    return Step(candidate(token), [candidate(id) for id in likeliest])
