"""What every request passes first: API keys, the size of its body, and the last resort."""

from __future__ import annotations

import asyncio
import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmkit.config.schema import ServeConfig
from llmkit.progress import Say
from llmkit.serving import refusals
from llmkit.serving.http.keys import ApiKeys
from llmkit.serving.metrics import Metrics
from llmkit.serving.refusals import Refusal

_PROTECTED = ("/v1/", "/metrics")
"""The paths that need a key: not the pages, which contain nothing, nor the states, which a load
balancer asks for."""

_PATHS = (
    "/v1/completions", "/v1/chat/completions", "/v1/classify", "/v1/answer", "/v1/models",
    "/health", "/ready",
)  # fmt: skip
"""The paths that are counted by name."""


class Guard:
    """An ASGI application around that of the routes."""

    def __init__(
        self, app: ASGIApp, settings: ServeConfig, keys: ApiKeys, metrics: Metrics, warn: Say
    ) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.metrics, self.warn = metrics, warn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on with its whole body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), counted)
        except Refusal as refusal:
            await _refuse(refusal, counted)
        except Exception as fault:
            logging.getLogger(__name__).info("a bug", exc_info=fault)
            self.warn(f"a bug in llmkit: {scope['path']}: {type(fault).__name__}: {fault}")
            if status == 499:  # nothing was sent
                await _refuse(refusals.failed("a bug in llmkit"), counted)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self.metrics.answered(path, status, time.monotonic() - began)

    def _check_key(self, scope: Scope) -> None:
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        if scope["path"].startswith(_PROTECTED) and not self.keys.allow(given):
            raise refusals.no_key()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before it was complete."""
        limit, body = self.settings.max_body_bytes, bytearray()
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limit:
            raise refusals.body_too_large(limit)
        try:
            async with asyncio.timeout(self.settings.max_seconds):
                while (message := await receive())["type"] == "http.request":
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise refusals.body_too_large(limit)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise refusals.too_slow(self.settings.max_seconds) from None
        return None


def _replayed(body: bytes | None, receive: Receive) -> Receive:
    """A channel that has the whole body, and then what comes after it."""
    first: list[Message] = [{"type": "http.disconnect"}]
    if body is not None:
        first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps(refusal.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    named = {**headers, **refusal.headers}.items()
    encoded = [(name.lower().encode(), value.encode()) for name, value in named]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
