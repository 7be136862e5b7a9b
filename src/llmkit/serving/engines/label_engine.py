"""Labels the texts of many requests together: those that arrive within a few milliseconds form
batches of similar length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmkit.data.examples.encoded import Encoded
from llmkit.serving.engines.jobs import Begun, Done, Event, Failed, LabelJob

WAIT = 0.005
"""Seconds that a text waits for others."""

GROUP = 512
"""Number of rows that are sorted by length together; a group ends with the request that reaches
it."""

_SPREAD, _ABOVE = 1.25, 8
"""The longest text of a batch has at most this many times the tokens of its shortest, or this many
more."""

_Rows = NDArray[np.int64]


class Labeller(Protocol):
    """A model that labels rows."""

    @property
    def batch_tokens(self) -> int:
        """Number of tokens of a batch that keeps the device busy."""

    def of_batch(self, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """The outputs [rows, ...] of a padded batch."""


class LabelEngine:
    """A classifier or tagger for the engine's thread, which alone may call it.

    In fp32, probabilities agree with those of `llmkit predict` up to rounding: `predict` fills each
    batch to a fixed size, which costs a single text as much time as a full batch.
    """

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller
        self.failures = 0
        """Number of batches that have failed one after another."""
        self._waiting: deque[LabelJob] = deque()
        self._due = 0.0
        self._group = _Group([])
        self._batches: deque[_Rows] = deque()

    @property
    def jobs(self) -> list[LabelJob]:
        """The jobs that are not done."""
        return [*self._group.left, *self._waiting]

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None without any job."""
        if self._batches:
            return 0.0
        return max(0.0, self._due - now) if self._waiting else None

    def add(self, job: LabelJob, now: float) -> None:
        """Queues the texts of a job."""
        if not self._waiting:
            self._due = now + WAIT
        self._waiting.append(job)

    def cancel(self, job: LabelJob) -> None:
        """Removes a job; batches without any other job are not computed."""
        if job in self._waiting:
            self._waiting.remove(job)
        self._group.left.pop(job, None)

    def step(self, now: float) -> list[tuple[LabelJob, Event]]:
        """Labels one batch; returns the events of its jobs."""
        if self._batches:
            return list(self._label(self._batches.popleft()))
        if self.wait(now) != 0.0:
            return []
        jobs: list[LabelJob] = []
        while self._waiting and sum(len(job.encoded) for job in jobs) < GROUP:
            jobs.append(self._waiting.popleft())
        self._group = _Group(jobs)
        lengths = self._group.encoded.lengths
        self._batches += batches_by_length(lengths, self.labeller.batch_tokens)
        begun: list[tuple[LabelJob, Event]] = [(job, Begun()) for job in jobs]
        return [*begun, *((job, Done()) for job in self._group.without_rows())]

    def _label(self, rows: _Rows) -> Iterator[tuple[LabelJob, Event]]:
        group = self._group
        by_job: dict[LabelJob, list[int]] = {}
        for row in rows.tolist():
            if (job := group.job_of(row)) in group.left:
                by_job.setdefault(job, []).append(row)
        if not by_job:
            return
        kept = [row for some in by_job.values() for row in some]
        try:
            outputs = self.labeller.of_batch(group.encoded.batch(kept))
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
        yield from group.receive(kept, outputs)


class _Group:
    """The rows of several jobs, one after another, and how many rows each job lacks."""

    def __init__(self, jobs: list[LabelJob]) -> None:
        self.jobs = jobs
        self.left = {job: len(job.encoded) for job in jobs}
        self.starts = np.cumsum([0, *self.left.values()])
        if jobs:
            self.encoded = Encoded.joined([job.encoded for job in jobs])

    def job_of(self, row: int) -> LabelJob:
        """The job that a row belongs to."""
        return self.jobs[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def without_rows(self) -> list[LabelJob]:
        """The jobs that have nothing to compute, which are done at once."""
        empty = [job for job, count in self.left.items() if not count]
        for job in empty:
            del self.left[job]
        return empty

    def receive(
        self, rows: list[int], outputs: NDArray[np.float32]
    ) -> Iterator[tuple[LabelJob, Event]]:
        """Takes the outputs [rows, ...] of some rows; returns the jobs that are done."""
        for row, values in zip(rows, outputs, strict=True):
            place = int(np.searchsorted(self.starts, row, side="right")) - 1
            job = self.jobs[place]
            job.keep(row - int(self.starts[place]), values)
            self.left[job] -= 1
            if not self.left[job]:
                del self.left[job]
                yield job, Done()


def batches_by_length(lengths: NDArray[np.int64], tokens: int) -> Iterator[_Rows]:
    """Rows in batches of similar length, shortest first, each of at most `tokens` with padding if
    it has several rows."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        shortest = int(lengths[order[first]])
        limit = max(shortest * _SPREAD, shortest + _ABOVE)
        last = first + 1
        while last < len(order):
            length = int(lengths[order[last]])
            if length > limit or (last + 1 - first) * length > tokens:
                break
            last += 1
        yield order[first:last]
        first = last
