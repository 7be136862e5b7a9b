"""Runs the application until a signal asks it to stop, and lets begun requests finish."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from llmkit.distributed import signals
from llmkit.progress import Say
from llmkit.reporting.format import many
from llmkit.serving.http.address import BACKLOG
from llmkit.serving.service import Service

_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do, so that they close it."""

_CLOSING = 5
"""Seconds for the last bytes of responses."""

_AT_ONCE = {signal.SIGINT: 130}
_STOPPED = 75
"""Exit codes of a second signal."""


@dataclass(frozen=True)
class ServerEnd:
    """How a server ended."""

    signal: int
    cut: int
    """Number of requests that did not finish in time."""


def run_server(
    app: ASGIApp, service: Service, listener: socket.socket, ready: Callable[[], None], say: Say
) -> ServerEnd:
    """Serves until a signal, then until begun requests have finished or their time is over.

    A second signal ends the process at once. `ready` is called when requests are answered.
    """
    return asyncio.run(_serve(app, service, listener, ready, say))


class _HttpServer(uvicorn.Server):
    """A server that leaves signals to us: its own end closes the port before requests finish."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


async def _serve(
    app: ASGIApp, service: Service, listener: socket.socket, ready: Callable[[], None], say: Say
) -> ServerEnd:
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="none", backlog=BACKLOG, server_header=False,
        timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=_CLOSING,
        log_level=None if logging.getLogger().handlers else logging.CRITICAL,
    )  # fmt: skip
    server = _HttpServer(config)
    service.worker.start(loop)
    with _short_collections(), _stop_requests(loop) as stop:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        ready()
        number = await stop
        cut = await _drain(service, say)
        server.should_exit = True
        await serving
    service.worker.stop()
    service.admission.encoder.shutdown(wait=False, cancel_futures=True)
    return ServerEnd(number, cut)


@contextmanager
def _short_collections() -> Iterator[None]:
    """Keeps Python's garbage collection from going through the objects of the libraries and models
    again and again, which takes as long as the rest of a request."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _drain(service: Service, say: Say) -> int:
    """Refuses new requests, waits for the others within the grace, and ends the rest; returns how
    many were cut."""
    admission, grace = service.admission, service.config.serve.grace
    admission.is_stopping = True
    left = admission.n_open
    have = "has" if left == 1 else "have"
    what = f": {many(left, 'request')} {have} {grace:g} s to finish (again: now)"
    say("stopping" + (what if left else ""))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    while admission.open and loop.time() < deadline:
        await asyncio.sleep(0.01)
    cut = admission.end_all()
    while admission.open and loop.time() < deadline + _CLOSING:
        await asyncio.sleep(0.01)  # their responses have an error to send
    return cut


@contextmanager
def _stop_requests(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Future[int]]:
    """The first signal that asks to stop; a second one ends the process at once."""
    first: asyncio.Future[int] = loop.create_future()
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(_AT_ONCE.get(signal.Signals(number), _STOPPED))
        signals.state.answered = True  # the server itself says that it is stopping
        loop.call_soon_threadsafe(first.set_result, number)

    handled = [each for each in signals.SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield first
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
