"""The results of requests as JSON objects, in the form of OpenAI's API."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.inference.generated import Candidate, FinishReason, Step
from llmkit.serving.engines.jobs import NewText, TextJob
from llmkit.serving.named_model import WritingModel

_REASONS: Mapping[FinishReason, str] = {
    "eos": "stop", "stop": "stop", "length": "length", "context": "length",
    "nothing_allowed": "stop",
}  # fmt: skip

_SERVER, _NUMBERS = secrets.token_hex(8), itertools.count(1)
"""What the ids of this server's responses begin with, and the number that follows."""

_DECIMALS = 6
_IMPOSSIBLE = -9999.0


class TextResponse:
    """The response to a request for text: whole, or as chunks of a stream.

    Besides the fields of OpenAI's API, it has the `seed`, the exact `stop_reason` of each text, and
    `warnings` where there are any.
    """

    def __init__(
        self, model: WritingModel, job: TextJob, is_chat: bool, n_logprobs: int | None
    ) -> None:
        self.job, self.is_chat = job, is_chat
        self.n_logprobs = n_logprobs
        """How many of the most likely tokens are listed; None lists no log-probabilities."""
        self._lengths = Counter[int]()
        """Characters of the tokens of each text so far."""
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{_SERVER}{next(_NUMBERS):08x}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
            "seed": job.prompts[0].seed,
            **_warnings(model, job),
        }

    def whole(self) -> dict[str, Any]:
        """The response of a job that is done."""
        choices = [
            self._choice(place, sample.text, sample.steps, sample.finish_reason)
            for place, sample in enumerate(self.job.samples)
        ]
        return {**self._object(), "choices": choices, "usage": self.usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first text: in a chat, the role of each message."""
        if not self.is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk({"index": place, "delta": delta, "logprobs": None, "finish_reason": None})
            for place in range(len(self.job.sequences))
        ]

    def chunk(self, piece: NewText) -> dict[str, Any]:
        """New text of one of the texts."""
        return self._chunk(self._choice(piece.place, piece.text, piece.steps, piece.ended))

    def last_chunk(self) -> dict[str, Any]:
        """The number of tokens, after all text."""
        return {**self._chunk(None), "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """The number of tokens of prompts and texts."""
        prompt = self.job.n_prompt_tokens
        generated = sum(len(sample.tokens) for sample in self.job.samples)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }

    def _object(self, is_chunk: bool = False) -> dict[str, Any]:
        kind = "chat.completion" + (".chunk" if is_chunk else "")
        return {"object": kind if self.is_chat else "text_completion", **self._head}

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        return {**self._object(is_chunk=True), "choices": [] if choice is None else [choice]}

    def _choice(
        self, place: int, text: str, steps: Sequence[Step], ended: FinishReason | None
    ) -> dict[str, Any]:
        return {
            "index": place,
            **self._content(text),
            "logprobs": None if self.n_logprobs is None else self._logprobs(place, steps),
            "finish_reason": None if ended is None else _REASONS[ended],
            "stop_reason": ended,
        }

    def _content(self, text: str) -> dict[str, Any]:
        if not self.is_chat:
            return {"text": text}
        if self.job.is_streamed:
            return {"delta": {"content": text}}
        return {"message": {"role": "assistant", "content": text}}

    def _logprobs(self, place: int, steps: Sequence[Step]) -> dict[str, Any]:
        if self.is_chat:
            return {"content": [self._chat_token(step) for step in steps]}
        offsets = []
        for step in steps:
            offsets.append(self._lengths[place])
            self._lengths[place] += len(step.chosen.token)
        return {
            "tokens": [step.chosen.token for step in steps],
            "token_logprobs": [_rounded(step.chosen) for step in steps],
            "top_logprobs": [self._table(step) for step in steps] if self.n_logprobs else None,
            "text_offset": offsets,
        }

    def _table(self, step: Step) -> dict[str, float]:
        """The most likely tokens and the chosen one; of two with the same text, the likelier."""
        candidates = sorted([step.chosen, *step.likeliest], key=lambda each: each.logprob)
        return {each.token: _rounded(each) for each in candidates}

    def _chat_token(self, step: Step) -> dict[str, Any]:
        likeliest = step.likeliest[: self.n_logprobs]
        return {**_token(step.chosen), "top_logprobs": [_token(each) for each in likeliest]}


def _token(candidate: Candidate) -> dict[str, Any]:
    """A token with its bytes, or null for a token that is only a part of a character."""
    whole = "\N{REPLACEMENT CHARACTER}" not in candidate.token
    return {
        "token": candidate.token,
        "logprob": _rounded(candidate),
        "bytes": list(candidate.token.encode()) if whole else None,
    }


def _rounded(candidate: Candidate) -> float:
    """The log-probability; that of an impossible token is a large negative number, as JSON has no
    infinity."""
    return round(max(candidate.logprob, _IMPOSSIBLE), _DECIMALS)


def _warnings(model: WritingModel, job: TextJob) -> dict[str, list[str]]:
    found = [] if model.warning is None else [model.warning]
    if cut := [prompt.cut for prompt in job.prompts if prompt.cut]:
        found.append(f"{len(cut)} prompts were cut {model.cut}, by up to {max(cut)} tokens")
    return {"warnings": found} if found else {}
