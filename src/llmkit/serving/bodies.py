"""The JSON bodies of requests: their fields, with types and ranges, and the answer to others."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit.config.types import Count, Finite, Positive, Rate, Share, Whole
from llmkit.serving.refusals import Refusal

_Text = Annotated[str, Field(min_length=1)]
_Candidates = Annotated[int, Field(strict=True, ge=0, le=20)]

UNSUPPORTED = (
    "audio", "best_of", "echo", "function_call", "functions", "logit_bias", "metadata",
    "modalities", "parallel_tool_calls", "prediction", "prompt_cache_key", "reasoning_effort",
    "safety_identifier", "service_tier", "store", "suffix", "tool_choice", "tools", "user",
    "verbosity", "web_search_options",
)  # fmt: skip
"""Fields of OpenAI's API that llmkit does not have: refused, because ignoring them would give
another result than the client asked for. As null they are not given."""


class Body(BaseModel):
    """A JSON object with these fields and no others; null is the same as a missing field."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        try:
            json.dumps(given, ensure_ascii=False).encode()
        except (UnicodeError, RecursionError):
            raise ValueError("is not Unicode text, or is nested too deeply") from None
        known = {*cls.model_fields, *UNSUPPORTED}
        return {
            name: value for name, value in given.items() if value is not None or name not in known
        }


class StreamOptions(Body):
    """What a stream contains besides the text."""

    include_usage: bool = False
    """Ends the stream with the numbers of tokens."""


class JsonSchema(Body):
    """A JSON schema that the text satisfies."""

    name: str | None = None
    """A name for the schema, which has no effect."""
    description: str | None = None
    """A description of the schema, which has no effect."""
    schema_: dict[str, Any] = Field(alias="schema")
    """The schema; its keywords are those that llguidance supports."""
    strict: bool = True
    """Whether the text must satisfy the schema; only true is supported."""


class ResponseFormat(Body):
    """The form of the text: any (`text`), JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampling(Body):
    """Fields of every request for text; those that are missing have the values that the server was
    started with (`generation.*`)."""

    model: str | None = None
    """Name of a served model; by default the first."""
    stream: bool = False
    """Sends the text as server-sent events while it is generated."""
    stream_options: StreamOptions | None = None
    """What a stream contains besides the text; needs `stream`."""
    n: Count = 1
    """Number of texts per prompt."""
    seed: Whole | None = None
    """Seed of sampling: in fp32, the same seed gives the same text as `llmkit generate`, whatever
    else the server does. By default a random one, which the response states."""
    stop: list[_Text] | _Text | None = None
    """Strings that end the text; not included in it."""
    temperature: Rate | None = None
    """Below 1, probabilities become sharper; 0 always takes the most likely token."""
    top_p: Share | None = None
    """Nucleus sampling: keep the most likely tokens up to this total probability."""
    top_k: Whole | None = None
    """Sample only from this many most likely tokens; 0 samples from all."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Keep tokens with at least this fraction of the most likely token's probability."""
    typical_p: Share | None = None
    """Locally typical sampling: keep the most typical tokens up to this total probability."""
    frequency_penalty: Finite | None = None
    """Subtracted from a token's logit for each time it was generated."""
    presence_penalty: Finite | None = None
    """Subtracted once from the logit of every token that was generated."""
    repetition_penalty: Positive | None = None
    """Above 1, tokens that occur in the prompt or the generated text become less likely."""
    no_repeat_ngram_size: Whole | None = None
    """No n-gram of this many tokens occurs twice; 0 disables this."""
    min_new_tokens: Whole | None = None
    """Minimum number of new tokens."""
    bad_words: list[_Text] | None = None
    """Strings that are never generated, however they are tokenized."""
    choices: list[_Text] | None = None
    """The text is one of these strings."""
    regex: _Text | None = None
    """Regular expression that the text matches."""
    response_format: ResponseFormat | None = None
    """The form of the text; any by default."""

    def _n_characters(self, texts: Sequence[str]) -> float:
        """The characters of texts to encode; infinite with a form of the text, to be compiled."""
        has_form = self.choices or self.regex or self.response_format
        return math.inf if has_form else sum(map(len, texts))


class CompletionBody(Sampling):
    """Text to continue."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    """The text, or several."""
    max_tokens: Count | None = None
    """Maximum number of new tokens."""
    logprobs: _Candidates | None = None
    """Returns the log-probability of each token, and of this many of the most likely ones."""

    def n_characters(self) -> float:
        """How much there is to encode."""
        return self._n_characters([self.prompt] if isinstance(self.prompt, str) else self.prompt)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Turn(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def as_message(self) -> dict[str, str]:
        """The message as a chat template reads it."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class ChatBody(Sampling):
    """A conversation to continue with a message of the assistant."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    """The messages so far."""
    max_completion_tokens: Count | None = None
    """Maximum number of new tokens."""
    max_tokens: Count | None = None
    """The same, under its older name."""
    logprobs: bool = False
    """Returns the log-probability of each token."""
    top_logprobs: _Candidates | None = None
    """Returns those of this many of the most likely tokens, too; needs `logprobs`."""

    def n_characters(self) -> float:
        """How much there is to encode."""
        return self._n_characters([turn.as_message()["content"] for turn in self.messages])


class TextPair(Body):
    """Two texts that are classified together."""

    text: str
    text_pair: str


class ClassifyBody(Body):
    """Texts to classify, or for a tagger to label spans of."""

    model: str | None = None
    """Name of a served model; by default the first classifier or tagger."""
    input: str | TextPair | Annotated[list[str | TextPair], Field(min_length=1)]
    """A text, a pair of texts, or a list of these."""

    def texts(self) -> list[tuple[str, ...]]:
        """The texts, or pairs, in order."""
        given = self.input if isinstance(self.input, list) else [self.input]
        return [(each,) if isinstance(each, str) else (each.text, each.text_pair) for each in given]

    def n_characters(self) -> int:
        """How much there is to encode."""
        return sum(len(text) for texts in self.texts() for text in texts)


class AnswerBody(Body):
    """Questions to answer with spans of their contexts."""

    model: str | None = None
    """Name of a served model; by default the first that answers questions."""
    question: _Text | Annotated[list[_Text], Field(min_length=1)]
    """A question, or several."""
    context: str | Annotated[list[str], Field(min_length=1)]
    """The text that the answers are spans of: one for all questions, or one for each."""

    def texts(self) -> list[tuple[str, ...]]:
        """Each question with its context; raises Refusal for another number of contexts."""
        asked = [self.question] if isinstance(self.question, str) else self.question
        contexts = [self.context] * len(asked) if isinstance(self.context, str) else self.context
        if len(asked) != len(contexts):
            message = f"context: there are {len(contexts)} for {len(asked)} questions"
            raise Refusal(message, param="context", code="invalid_value")
        return list(zip(asked, contexts, strict=True))

    def n_characters(self) -> int:
        """How much there is to encode."""
        return sum(len(text) for texts in self.texts() for text in texts)


BODIES = (CompletionBody, ChatBody, ClassifyBody, AnswerBody)


def refusal_of(errors: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Refusal:
    """The refusal of a body with these errors of pydantic; `names` are the fields that it may have.

    All fields at fault are named; `param` is the first.
    """
    faults = {_place(error): _message(error, names) for error in reversed(errors)}
    found = dict(reversed(faults.items()))
    codes = {_code(error) for error in errors}
    return Refusal(
        "; ".join(f"{name}: {message}" if name else message for name, message in found.items()),
        param=next(iter(found)) or None,
        code=codes.pop() if len(codes) == 1 else "invalid_body",
    )


def _place(error: Mapping[str, Any]) -> str:
    """The field that an error is about: `messages[0].role`."""
    if error["type"] == "json_invalid":
        return ""
    place = ""
    for part in error["loc"][1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier():
            place += f".{part}" if place else part
        else:
            break  # a branch of a union, such as `list[str]`
    return place


def _message(error: Mapping[str, Any], names: Sequence[str]) -> str:
    name = str(error["loc"][-1])
    if error["type"] == "extra_forbidden":
        if name in UNSUPPORTED:
            return "is not supported by llmkit serve"
        near = difflib.get_close_matches(name, names, n=1)
        return "is not a field of this request" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "value_error" and len(error["loc"]) == 1:
        return f"the body {error['ctx']['error']}"
    return str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")


def _code(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        unsupported = error["loc"][-1] in UNSUPPORTED
        return "unsupported_field" if unsupported else "unknown_field"
    return "invalid_body" if error["type"] in ("json_invalid", "missing") else "invalid_value"
