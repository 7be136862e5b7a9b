"""What a server answers in place of a result: errors in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.errors import LlmkitError

INVALID, AUTHENTICATION, OVERLOADED, FAILED = (
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error",
)  # fmt: skip
"""The types of errors."""


class Refusal(Exception):
    """A request that is not carried out, or not to its end.

    `param` is the field at fault, `code` what programs tell it by. Clients of OpenAI repeat a
    request after a status of 429, 408 or 5xx, unless a header forbids it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind
        self.param, self.code = param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as a JSON object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def no_such_model(name: str, known: list[str]) -> Refusal:
    """The refusal of a model that is not served."""
    message = f"the model {name!r} is not served here; there is {', '.join(known)}"
    return Refusal(message, status=404, param="model", code="model_not_found")


def no_key() -> Refusal:
    """The refusal of a request without a valid API key."""
    return Refusal(
        "a valid API key is needed, as in `Authorization: Bearer KEY`",
        status=401,
        kind=AUTHENTICATION,
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def body_too_large(limit: int) -> Refusal:
    """The refusal of a request with more bytes than `serve.max_body_bytes`."""
    return Refusal(
        f"the request has more than {limit:,} bytes (serve.max_body_bytes)",
        status=413,
        code="request_too_large",
        headers={"Connection": "close"},
    )


def queue_full(limit: int, seconds: int) -> Refusal:
    """The refusal of a request when `serve.max_queue` requests are waiting."""
    return Refusal(
        f"{limit} requests are waiting already (serve.max_queue); try again in {seconds} s",
        status=429,
        kind=OVERLOADED,
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def stopping() -> Refusal:
    """The refusal of new requests, and of those that are cut off, when the server stops."""
    headers = {"Retry-After": "10", "Connection": "close"}
    return Refusal(
        "the server is stopping", status=503, kind=FAILED, code="stopping", headers=headers
    )


def engine_dead(reason: str) -> Refusal:
    """The refusal of every request after the engine has ended."""
    return _final(f"the engine has ended: {reason}", 503, "engine_dead")


def too_slow(seconds: float) -> Refusal:
    """The end of a request that takes longer than `serve.max_seconds`."""
    return _final(f"the request took more than {seconds:g} s (serve.max_seconds)", 504, "timeout")


def failed(reason: str) -> Refusal:
    """The end of a request by a fault of the model or of llmkit."""
    return _final(f"the request failed: {reason}", 500, "failed")


def _final(message: str, status: int, code: str) -> Refusal:
    """The refusal of a request that would fail again: clients are not to repeat it."""
    headers = {"x-should-retry": "false"}
    return Refusal(message, status=status, kind=FAILED, code=code, headers=headers)


def refusal_of_fault(fault: LlmkitError) -> Refusal:
    """The refusal of a request that has caused an error of llmkit."""
    key = fault.where.removeprefix("generation.")
    field = {"chat_template": "messages", "json_schema": "response_format"}.get(key, key)
    is_long = any(words in fault.what for words in ("context holds", "reads at most"))
    code = "context_length_exceeded" if is_long else None
    return Refusal(f"{field}: {fault.what}", param=field, code=code)
