"""The thread that owns all models: it takes jobs, steps the engines, and reports what happens."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from llmkit.serving.engines.jobs import Event, Failed, FirstSent, Job
from llmkit.serving.refusals import engine_dead

MOST_FAILURES = 8
"""An engine whose forward pass has failed this many times in a row is considered dead."""


class ModelEngine(Protocol):
    """A model that carries out jobs of one kind step by step."""

    @property
    def failures(self) -> int:
        """Number of forward passes that have failed one after another."""

    @property
    def jobs(self) -> Sequence[Job]:
        """The jobs that are not done."""

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None without any job."""

    def add(self, job: Any, now: float) -> None:
        """Queues a job."""

    def cancel(self, job: Any) -> None:
        """Ends a job."""

    def step(self, now: float) -> Sequence[tuple[Job, Event]]:
        """Does a part of the work; returns the events of the jobs."""


class Worker:
    """The engines of the served models, and the thread that runs them.

    Its methods are called from the event loop; the events of a job arrive in the job's queue.
    """

    def __init__(self, engines: Mapping[str, ModelEngine], stuck: float) -> None:
        self.engines = engines
        self.stuck = stuck
        """Seconds that a step may take before the thread is considered dead."""
        self.sending = 0.02
        """Maximum seconds that a step waits until the first texts of streams are sent."""
        self.fault = ""
        """Why the thread has ended; empty while it runs, or if it was asked to."""
        self._orders: queue.SimpleQueue[Callable[[float], None] | None] = queue.SimpleQueue()
        self._found: list[tuple[Job, Event]] = []
        self._since: float | None = None
        """When the current step began."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread, which reports to this event loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step."""
        self._orders.put(None)
        self._thread.join(timeout=1.0)

    def trouble(self) -> str:
        """Why no request can be carried out; empty if all is well."""
        since = self._since
        if since is not None and time.monotonic() - since > self.stuck:
            return f"one step has lasted more than {self.stuck:g} s"
        if self.fault or self._thread.is_alive():
            return self.fault
        return "its thread is not running"

    def submit(self, model: str, job: Job) -> None:
        """Queues a job for a model."""
        self._orders.put(lambda now: self._add(model, job, now))
        if self.fault:  # the thread may have ended without seeing it
            job.events.put_nowait(Failed(engine_dead(self.fault)))

    def cancel(self, model: str, job: Job) -> None:
        """Ends a job: nothing more is reported of it, and others may take its place."""
        engine = self.engines[model]
        self._orders.put(lambda now: engine.cancel(job))

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._step()
        except BaseException as fault:
            self.fault = f"{type(fault).__name__}: {fault}"
        dead = engine_dead(self.fault or "the server is stopping")
        with suppress(queue.Empty):  # what was ordered meanwhile fails with the rest
            while (order := self._orders.get_nowait()) is not None:
                order(0.0)
        self._found += [
            (job, Failed(dead)) for engine in self.engines.values() for job in engine.jobs
        ]
        self._report()

    def _take_orders(self) -> bool:
        """Waits until there is something to do, and carries out all orders; False to end."""
        now = time.monotonic()
        waits = [wait for each in self.engines.values() if (wait := each.wait(now)) is not None]
        self._since = None
        try:
            order = self._orders.get(timeout=min(waits)) if waits else self._orders.get()
            while order is not None:
                order(time.monotonic())
                order = self._orders.get_nowait()
            return False
        except queue.Empty:
            return True
        finally:
            self._since = time.monotonic()

    def _add(self, model: str, job: Job, now: float) -> None:
        engine = self.engines[model]
        try:
            engine.add(job, now)
        except Exception as fault:
            self._found.append((job, Failed(fault)))

    def _step(self) -> None:
        now = time.monotonic()
        for engine in self.engines.values():
            if engine.wait(now) == 0.0:
                self._found += engine.step(now)
            if engine.failures >= MOST_FAILURES:
                raise RuntimeError(f"the last {engine.failures} forward passes have failed")
        self._report()

    def _report(self) -> None:
        """Sends all events of a step to the event loop at once, because waking it takes time; then
        waits until the first texts of streams are sent, for which the event loop needs Python's
        lock, and the next step would hold it."""
        if not self._found:
            return
        found, self._found = self._found, []
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(_deliver, found)
        until = time.monotonic() + self.sending
        for _, event in found:
            if isinstance(event, FirstSent):
                event.reached.wait(max(0.0, until - time.monotonic()))


def _deliver(found: Sequence[tuple[Job, Event]]) -> None:
    for job, event in found:
        job.events.put_nowait(event)
