"""Which requests may begin, and each one's way from its admission to its end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from starlette.requests import Request

from llmkit.config.schema import ServeConfig
from llmkit.errors import ConfigError, LlmkitError, UsageError
from llmkit.progress import Say
from llmkit.serving import refusals
from llmkit.serving.engines.jobs import Begun, Done, Event, Failed, FirstSent, Job
from llmkit.serving.engines.worker import Worker
from llmkit.serving.metrics import Metrics
from llmkit.serving.refusals import Refusal

_Job = TypeVar("_Job", bound=Job)

_RECENT = 0.05
"""Weight of the newest request in the mean seconds of requests."""

_SHORT = 1000
"""Maximum number of characters that are encoded in the event loop."""


class ClientGone(Exception):
    """The client has closed its connection."""


class Admission:
    """The requests that wait or run; refuses further ones while too many wait, after the engine has
    died, and when the server stops. Only the event loop uses it."""

    def __init__(self, settings: ServeConfig, worker: Worker, metrics: Metrics, warn: Say) -> None:
        self.settings, self.worker, self.metrics, self.warn = settings, worker, metrics, warn
        self.is_stopping = False
        self.open: set[Ticket] = set()
        self.encoder = ThreadPoolExecutor(1, "encoder")
        """Encodes long prompts: in the event loop or between two tokens, they would delay all."""
        self.encoding = Lock()
        """Held while a prompt is encoded: no tokenizer does two at once."""
        self._seconds = 1.0
        """Mean duration of recent requests."""
        metrics.observe(self)

    @property
    def n_open(self) -> int:
        """Number of requests that wait or run."""
        return len(self.open)

    @property
    def n_waiting(self) -> int:
        """Number of requests without a result so far."""
        return sum(not ticket.has_begun for ticket in self.open)

    def trouble(self) -> str:
        """Why a request would be refused now; empty if it would not."""
        try:
            self._check()
        except Refusal as refusal:
            return refusal.message
        return ""

    def admit(self, request: Request, model: str) -> Ticket:
        """Admits a request for a model; raises Refusal."""
        self._check()
        return Ticket(self, request, model)

    def finished(self, ticket: Ticket, seconds: float) -> None:
        """Removes a request that has ended."""
        self.open.discard(ticket)
        self._seconds += _RECENT * (seconds - self._seconds)

    def end_all(self) -> int:
        """Ends all requests, and returns how many there were."""
        for ticket in self.open:
            ticket.end(refusals.stopping())
        return len(self.open)

    def _check(self) -> None:
        if trouble := self.worker.trouble():
            raise refusals.engine_dead(trouble)
        if self.is_stopping:
            raise refusals.stopping()
        limit = self.settings.max_queue
        if self.n_waiting >= limit:
            raise refusals.queue_full(limit, max(1, math.ceil(self._seconds)))


class Ticket:
    """A request that was admitted. It must be closed."""

    def __init__(self, admission: Admission, request: Request, model: str) -> None:
        self.admission, self.model = admission, model
        self.has_begun = self.is_done = False
        self.job: Job | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._reason = "client"
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        seconds = admission.settings.max_seconds
        self.deadline = self._since + seconds
        self._timer = self._loop.call_at(self.deadline, self.end, refusals.too_slow(seconds))
        self._watch = self._loop.create_task(self._watch_client(request))
        admission.open.add(self)

    async def submit(self, make: Callable[[], _Job], n_characters: float) -> _Job:
        """Makes the job of the request from so many characters, and hands it to the engine.

        A long text is encoded in the encoder's thread. A short one takes less time than the way to
        that thread and back.
        """
        encoding = self.admission.encoding
        if n_characters <= _SHORT and encoding.acquire(blocking=False):
            try:
                job = make()
            finally:
                encoding.release()
        else:
            job = await self._loop.run_in_executor(self.admission.encoder, _made, encoding, make)
        job.events, self.job = self._events, job
        self.admission.worker.submit(self.model, job)
        return job

    async def next(self) -> Event:
        """The next event of the job except its failure, which is raised as Refusal or
        ClientGone."""
        while isinstance(event := await self._events.get(), FirstSent):
            event.reached.set()
        figures = self.admission.metrics
        match event:
            case Failed(fault):
                raise self._refusal(fault)
            case Begun():
                self.has_begun = True
                figures.begun(self._loop.time() - self._since)
            case Done():
                self.is_done = True
                figures.done(self.model, self.job)
        return event

    async def finish(self) -> None:
        """Waits until the job is done; raises what `next` raises."""
        while not self.is_done:
            await self.next()

    def end(self, fault: Exception) -> None:
        """Ends the request with a fault, which `next` raises."""
        self._events.put_nowait(Failed(fault))

    def close(self) -> None:
        """Frees what the request occupies, whether it was complete or not."""
        if self not in self.admission.open:
            return
        self._timer.cancel()
        self._watch.cancel()
        if not self.is_done:
            self.admission.metrics.ended_early(self._reason)
            if self.job is not None:
                self.admission.worker.cancel(self.model, self.job)
        self.admission.finished(self, self._loop.time() - self._since)

    def unwatch(self) -> None:
        """Leaves it to a streaming response to notice that the client has left."""
        self._watch.cancel()

    async def _watch_client(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone())

    def _refusal(self, fault: Exception) -> Exception:
        if isinstance(fault, ClientGone):
            return fault
        self._reason = getattr(fault, "code", None) or "failed"
        if isinstance(fault, Refusal):
            return fault
        if isinstance(fault, ConfigError | UsageError):
            return refusals.refusal_of_fault(fault)
        what = fault.what if isinstance(fault, LlmkitError) else type(fault).__name__
        self.admission.warn(f"a request for {self.model} failed: {type(fault).__name__}: {fault}")
        return refusals.failed(what)


def _made(encoding: Lock, make: Callable[[], _Job]) -> _Job:
    """The job of a request, once no other is encoded."""
    with encoding:
        return make()
