"""What all served models have in common: a name, an identity, a precision, and how they read
requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from llmkit.config.schema import GenerationConfig
from llmkit.serving.bodies import ChatBody, CompletionBody
from llmkit.serving.engines.jobs import LabelJob, TextJob

B = TypeVar("B")
"""The body of a request."""


@dataclass(frozen=True)
class NamedModel:
    """A loaded model with the name that requests call it by."""

    name: str
    identity: str
    """Identifies its weights, config and tokenizer."""
    precision: str
    """The precision of its arithmetic."""

    paths: ClassVar[str] = "/v1/classify"
    """The paths that requests to it have, in words."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `/v1/models` says of it."""
        return {}

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its precision: in fp32, equal ones give equal results."""
        return f"{self.identity}-{self.precision}"


@dataclass(frozen=True)
class WritingModel(NamedModel, ABC):
    """A model that writes texts."""

    settings: GenerationConfig
    """The settings of fields that a request does not have."""
    max_tokens: int
    """Maximum number of new tokens that a request may ask for."""
    warning: str | None
    """What every response states: that the other texts of its batch may have changed a text."""

    paths = "/v1/completions or /v1/chat/completions"
    cut: ClassVar[str] = "from the left"
    """Which part of a long prompt is cut."""

    @abstractmethod
    def completion_job(self, body: CompletionBody) -> TextJob:
        """The job of a completion; raises Refusal for one that cannot be carried out."""

    @abstractmethod
    def chat_job(self, body: ChatBody) -> TextJob:
        """The job of a chat; raises Refusal for one that cannot be carried out."""


class RowModel(NamedModel, ABC, Generic[B]):
    """A model that labels rows."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """What it may find."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its labels."""
        return {"labels": list(self.labels)}

    @abstractmethod
    def job(self, body: B) -> LabelJob:
        """The job of a request; raises Refusal for one that cannot be carried out."""

    @abstractmethod
    def response(self, job: Any) -> dict[str, Any]:
        """The response to a job that is done; raises Refusal if the outputs of the model are not
        finite."""

    def listing(self, data: Sequence[dict[str, Any]], n_tokens: int) -> dict[str, Any]:
        """The response with one object for each text of a request."""
        return {
            "object": "list",
            "model": self.name,
            "system_fingerprint": self.fingerprint,
            "data": list(data),
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
