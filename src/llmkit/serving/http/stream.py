"""A response that is sent while it is generated, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llmkit.serving.admission import ClientGone, Ticket
from llmkit.serving.engines.jobs import NewText
from llmkit.serving.refusals import Refusal
from llmkit.serving.responses import TextResponse

_LAST = 5
"""Seconds that a client has to read the last event after the time of its request is over."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class TextStream(StreamingResponse):
    """The pieces of a request for text as they are generated.

    An error after the first one is the last event, in the form of OpenAI's API. However it ends,
    also because the client has left, its ticket is closed.
    """

    def __init__(self, ticket: Ticket, response: TextResponse, with_usage: bool) -> None:
        super().__init__(self._events(), media_type="text/event-stream", headers=_HEADERS)
        self.ticket, self.response, self.with_usage = ticket, response, with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events; gives up on a client that does not read them."""
        self.ticket.unwatch()
        try:
            async with asyncio.timeout_at(self.ticket.deadline + _LAST):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return  # which closes the connection
        finally:
            self.ticket.close()

    async def _events(self) -> AsyncIterator[str]:
        for chunk in self.response.opening():
            yield _event(chunk)
        try:
            while not self.ticket.is_done:
                event = await self.ticket.next()
                if isinstance(event, NewText):
                    yield _event(self.response.chunk(event))
        except Refusal as refusal:
            yield _event(refusal.body())
            return
        except ClientGone:
            return
        if self.with_usage:
            yield _event(self.response.last_chunk())
        yield "data: [DONE]\n\n"


def _event(content: Any) -> str:
    # In ASCII: clients take characters such as U+2028 for the end of a line.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"
