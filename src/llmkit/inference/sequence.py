"""A sequence during generation: its tokens, its random numbers, and the reason it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmkit.errors import DataError
from llmkit.inference import sampler as sampling
from llmkit.inference.decoding.prompt_lookup import PromptLookup
from llmkit.inference.detokenizer import Detokenizer
from llmkit.inference.generated import Candidate, FinishReason, Sample, Step
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler


class Sequence:
    """One continuation of a prompt; a streamed one decodes its text after every token."""

    def __init__(
        self, prompt: Prompt, index: int, sampler: Sampler, is_streamed: bool = False
    ) -> None:
        settings = sampler.settings
        self.prompt, self.index, self.sampler = prompt, index, sampler
        self.tokens: list[int] = []
        self.logprob = 0.0
        self.steps: list[Step] = []
        self.ended: FinishReason | Literal["aborted", "failed"] | None = None
        self.fault: Exception | None = None
        at_once = is_streamed or bool(settings.stop or settings.bad_words)
        self.detokenizer = Detokenizer(sampler.tokenizer, prompt.ids, settings.stop, at_once)
        self.rules = sampler.history_rules(len(prompt.ids))
        self.constraint = sampler.constrain(prompt) if sampler.constrain else None
        self.banned: list[int] = []
        """Tokens that would complete a bad word at this position."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the prompt and those generated."""
        return (*self.prompt.ids, *self.tokens)

    def new_text(self) -> str:
        """The text added since the last call, in whole characters; a possible start of a stop
        string is held back."""
        return self.detokenizer.new_text(final=self.ended is not None)

    def end(self, reason: FinishReason | Literal["aborted"]) -> None:
        """Ends the sequence."""
        self.ended = reason
        self.detokenizer.close()

    def fail(self, fault: Exception) -> None:
        """Ends the sequence with a fault, which `sample` raises."""
        self.ended, self.fault = "failed", fault

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A fault in the block ends this sequence and no other."""
        try:
            yield
        except Exception as fault:
            self.fail(fault)

    def sample(self) -> Sample:
        """The finished sample; raises the fault that ended the sequence, such as a DataError for
        logits of the model that are NaN or infinite."""
        if self.fault is not None:
            raise self.fault
        assert self.ended is not None
        assert self.ended != "aborted"
        assert self.ended != "failed"
        return Sample(
            prompt=self.prompt,
            index=self.index,
            text=self.detokenizer.text,
            tokens=tuple(self.tokens),
            finish_reason=self.ended,
            logprob=self.logprob,
            steps=tuple(self.steps),
        )

    def guesses(self) -> list[int]:
        """Tokens that may come next, so few that the token after them still belongs to it."""
        most = self.sampler.settings.prompt_lookup_num_tokens
        if most == 0:
            return []
        self._lookup.extend(self.tokens[len(self._lookup) - len(self.prompt.ids) :])
        left = self.prompt.max_new_tokens - len(self.tokens)
        if self.prompt.limit is not None:
            left = min(left, self.prompt.limit - len(self.prompt.ids) - len(self.tokens))
        return self._lookup.guesses(min(most, left - 1))

    @property
    def is_restricted(self) -> bool:
        """Whether its next token depends on more than the model and the distribution."""
        return bool(self.rules or self.constraint or self.banned)

    def restricted(self, scores: Tensor) -> Tensor:
        """The logits [1, vocabulary] of the next token after this sequence's own rules."""
        if self.rules:
            scores = self.rules(torch.tensor([self.ids], device=scores.device), scores)
        if self.constraint is not None:
            scores = sampling.restrict(scores, self.constraint)
        if self.banned:
            scores = scores.clone()
            scores[:, self.banned] = sampling.EXCLUDED
        return scores

    def rejects(self, token: int) -> bool:
        """Whether a token would complete a bad word; if so, it is banned at this position.

        Bad words are matched in the text, because a word can be tokenized in many ways.
        """
        words = self.sampler.settings.bad_words
        if not words:
            return False
        written = self.detokenizer.with_next(token, before=max(map(len, words)) - 1)
        if not any(word in written for word in words):
            return False
        self.banned.append(token)
        return True

    def uniform(self) -> float:
        """The next random number of this sequence."""
        return float(torch.rand((), generator=self._random, dtype=torch.float64))

    def append(self, token: int, logprob: float) -> None:
        """Appends a token, and ends the sequence if it is complete."""
        self.banned = []
        self.tokens.append(token)
        self.logprob += logprob
        if token in self.sampler.end_ids:
            self.end("eos")
            return
        self.detokenizer.append(token)
        if self.constraint is not None:
            self.constraint.take(token)
        if self.detokenizer.stopped or (self.constraint and self.constraint.complete()):
            self.end("stop")
        elif len(self.tokens) >= self.prompt.max_new_tokens:
            self.end("length")
        elif len(self.prompt.ids) + len(self.tokens) == self.prompt.limit:
            self.end("context")

    @cached_property
    def _lookup(self) -> PromptLookup:
        return PromptLookup(self.prompt.ids)  # only a sequence that runs alone needs it

    @cached_property
    def _random(self) -> torch.Generator:
        # Created on first use: thousands of sequences may be waiting.
        return self.prompt.generator(self.index)


class _Rows(NamedTuple):
    """Sequences that need a token, with logits and log-probabilities [rows, vocabulary]."""

    sequences: list[Sequence]
    logits: Tensor
    logprobs: Tensor

    def of(self, rows: list[int]) -> _Rows:
        """Some of the rows."""
        return _Rows([self.sequences[row] for row in rows], self.logits[rows], self.logprobs[rows])


def append_tokens(sequences: list[Sequence], logits: Tensor) -> None:
    """Samples and appends a token for each sequence from logits [sequences, vocabulary]; ends a
    sequence whose logits are non-finite, whose settings allow no token, or that has a fault."""
    logits = logits.float()
    rows = _Rows(sequences, logits, logits.log_softmax(-1))
    broken = rows.logprobs[:, 0].isnan()  # one NaN spreads over its row
    if broken.any():
        for row in broken.nonzero().flatten().tolist():
            sequences[row].fail(non_finite_logits())
        rows = rows.of((~broken).nonzero().flatten().tolist())
    while rows.sequences:
        rows = _append_allowed(rows)


def non_finite_logits() -> DataError:
    """The fault of a text whose logits are NaN or infinite."""
    return DataError(
        "the model's logits are NaN or infinite",
        where="model.name_or_path",
        next="check its weights; in bf16, try generation.precision=fp32",
    )


def _append_allowed(rows: _Rows) -> _Rows:
    """Appends a token to each sequence; returns those whose token is banned."""
    rows, scores = _restricted(rows)
    if not rows.sequences:
        return rows
    tokens, scores = _sampled(rows.sequences, scores)
    logprobs = rows.logprobs.gather(1, tokens[:, None]).squeeze(1).tolist()
    rejected = []
    for row, (sequence, token) in enumerate(zip(rows.sequences, tokens.tolist(), strict=True)):
        with sequence.catching():
            if sequence.rejects(token):
                rejected.append(row)
                continue
            if sequence.sampler.settings.explain:
                step = _step(sequence.sampler, token, rows.logprobs[row], scores[row])
                sequence.steps.append(step)
            sequence.append(token, logprobs[row])
    return rows.of(rejected) if rejected else _Rows([], rows.logits, rows.logprobs)


def _restricted(rows: _Rows) -> tuple[_Rows, Tensor]:
    """The sequences that have an allowed token, and their logits after their own rules."""
    if not any(sequence.is_restricted for sequence in rows.sequences):
        return rows, rows.logits
    scores = torch.full_like(rows.logits, sampling.EXCLUDED)
    for row, sequence in enumerate(rows.sequences):
        with sequence.catching():
            scores[row] = sequence.restricted(rows.logits[row][None])[0]
    free = (scores > sampling.EXCLUDED).any(-1).tolist()
    for sequence, is_free in zip(rows.sequences, free, strict=True):
        if not is_free and sequence.fault is None:
            sequence.end("nothing_allowed")
    if all(free):
        return rows, scores
    left = [row for row, is_free in enumerate(free) if is_free]
    return rows.of(left), scores[left]


def _sampled(sequences: list[Sequence], scores: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each row of `scores` [rows, vocabulary], and the distribution it is sampled from;
    rows with equal settings are sampled together."""
    alike: dict[tuple[float, ...], list[int]] = {}
    for row, sequence in enumerate(sequences):
        alike.setdefault(sequence.sampler.distribution, []).append(row)
    if len(alike) == 1:
        return _sampled_alike(sequences, scores)
    tokens = torch.empty(len(sequences), dtype=torch.long, device=scores.device)
    shaped = torch.empty_like(scores)
    for rows in alike.values():
        own = [sequences[row] for row in rows]
        tokens[rows], shaped[rows] = _sampled_alike(own, scores[rows])
    return tokens, shaped


def _sampled_alike(sequences: list[Sequence], scores: Tensor) -> tuple[Tensor, Tensor]:
    sampler = sequences[0].sampler
    for warper in sampler.warpers:  # called as a list, they are inspected at every token
        scores = warper(None, scores)
    if not sampler.settings.do_sample:
        return scores.argmax(-1), scores
    uniforms = torch.tensor([each.uniform() for each in sequences], dtype=torch.float64)
    return sampling.draw(scores, uniforms.to(scores.device)), scores


def _step(sampler: Sampler, token: int, logprobs: Tensor, scores: Tensor) -> Step:
    after = scores.softmax(-1)

    def candidate(id: int) -> Candidate:
        text = sampler.tokenizer.decode([id], clean_up_tokenization_spaces=False)
        return Candidate(id, text, float(logprobs[id]), float(after[id]))

    likeliest = logprobs.topk(min(sampler.settings.explain, len(logprobs))).indices.tolist()
    return Step(candidate(token), [candidate(id) for id in likeliest])
