"""Carries out the jobs of many requests in batches: those that arrive within a few milliseconds are
sorted together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmkit.serving.engines.jobs import Begun, Done, Event, Failed, Job

WAIT = 0.005
"""Seconds that a row waits for others."""

BatchRows = NDArray[np.int64]
J = TypeVar("J", bound=Job)


class BatchEngine(ABC, Generic[J]):
    """A model for the engine's thread, which alone may call it. A job has rows; those of a group of
    jobs are numbered one after another."""

    at_once: int
    """Number of rows that are sorted together; a group ends with the request that reaches it."""

    def __init__(self) -> None:
        self.failures = 0
        """Number of batches that have failed one after another."""
        self._waiting: deque[J] = deque()
        self._due = 0.0
        self._group = _Group[J]([], [])
        self._batches: deque[BatchRows] = deque()

    @abstractmethod
    def size(self, job: J) -> int:
        """Number of rows of a job."""

    @abstractmethod
    def plan(self, jobs: Sequence[J]) -> Iterable[BatchRows]:
        """The rows of each batch of a group of jobs."""

    @abstractmethod
    def compute(self, rows: list[int]) -> Iterable[Any]:
        """The result of some rows of the group that was planned last."""

    @abstractmethod
    def keep(self, job: J, row: int, result: Any) -> None:
        """Keeps the result of a row of a job."""

    def ended(self, job: J) -> list[Event]:
        """The events of a job that is done."""
        return [Done()]

    @property
    def jobs(self) -> list[J]:
        """The jobs that are not done."""
        return [*self._group.left, *self._waiting]

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None without any job."""
        if self._batches:
            return 0.0
        return max(0.0, self._due - now) if self._waiting else None

    def add(self, job: J, now: float) -> None:
        """Queues a job."""
        if not self._waiting:
            self._due = now + WAIT
        self._waiting.append(job)

    def cancel(self, job: J) -> None:
        """Removes a job; batches without any other job are not computed."""
        if job in self._waiting:
            self._waiting.remove(job)
        self._group.left.pop(job, None)

    def step(self, now: float) -> list[tuple[J, Event]]:
        """Computes one batch; returns the events of its jobs."""
        if self._batches:
            return list(self._batch(self._batches.popleft()))
        if self.wait(now) != 0.0:
            return []
        jobs: list[J] = []
        sizes: list[int] = []
        while self._waiting and sum(sizes) < self.at_once:
            jobs.append(self._waiting.popleft())
            sizes.append(self.size(jobs[-1]))
        self._group = _Group(jobs, sizes)
        self._batches += self.plan(jobs)
        begun: list[tuple[J, Event]] = [(job, Begun()) for job in jobs]
        empty = self._group.without_rows()
        return [*begun, *((job, event) for job in empty for event in self.ended(job))]

    def _batch(self, rows: BatchRows) -> Iterator[tuple[J, Event]]:
        group = self._group
        by_job: dict[J, list[int]] = {}
        for row in rows.tolist():
            if (job := group.place(row)[0]) in group.left:
                by_job.setdefault(job, []).append(row)
        if not by_job:
            return
        kept = [row for some in by_job.values() for row in some]
        try:
            results = self.compute(kept)
        except Exception as fault:
            self.failures += 1
            if len(by_job) > 1:  # each request by itself, so that only the cause fails
                self._batches.extendleft(np.array(some) for some in by_job.values())
                return
            (job,) = by_job
            self.cancel(job)
            yield job, Failed(fault)
            return
        self.failures = 0
        for row, result in zip(kept, results, strict=True):
            job, own = group.place(row)
            self.keep(job, own, result)
            if group.is_last(job):
                for event in self.ended(job):
                    yield job, event


class _Group(Generic[J]):
    """The rows of several jobs, one after another, and how many rows each job lacks."""

    def __init__(self, jobs: list[J], sizes: list[int]) -> None:
        self.jobs = jobs
        self.left = dict(zip(jobs, sizes, strict=True))
        self.starts = np.cumsum([0, *sizes])

    def place(self, row: int) -> tuple[J, int]:
        """The job that a row belongs to, and its number there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.jobs[number], row - int(self.starts[number])

    def without_rows(self) -> list[J]:
        """The jobs that have nothing to compute, which are done at once."""
        empty = [job for job, count in self.left.items() if not count]
        for job in empty:
            del self.left[job]
        return empty

    def is_last(self, job: J) -> bool:
        """Counts a row of a job; whether it was the last one."""
        self.left[job] -= 1
        if self.left[job]:
            return False
        del self.left[job]
        return True
