"""The figures of a server in the format of Prometheus."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from llmkit.serving.engines.jobs import Job, TextJob

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Observed(Protocol):
    """The requests of a server."""

    @property
    def n_open(self) -> int: ...

    @property
    def n_waiting(self) -> int: ...


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter(
            "llmkit_requests", "Requests by path and status.", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "llmkit_request_seconds", "Duration of a request.", ["path"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._first = Histogram(
            "llmkit_first_token_seconds", "Time from admission to the first token or batch.",
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._ended = Counter(
            "llmkit_ended_early", "Requests that ended before their result, by reason.",
            ["reason"], registry=own,
        )  # fmt: skip
        self._prompt_tokens = Counter(
            "llmkit_prompt_tokens", "Tokens of prompts.", ["model"], registry=own
        )
        self._tokens = Counter(
            "llmkit_generated_tokens", "Generated tokens.", ["model"], registry=own
        )
        self._labelled = Counter(
            "llmkit_labelled_texts", "Texts with a label.", ["model"], registry=own
        )

    def observe(self, requests: Observed) -> None:
        """Adds the numbers of requests that wait and that run."""
        waiting = Gauge("llmkit_waiting_requests", "Requests that wait.", registry=self.registry)
        running = Gauge("llmkit_running_requests", "Requests that run.", registry=self.registry)
        waiting.set_function(lambda: requests.n_waiting)
        running.set_function(lambda: requests.n_open - requests.n_waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a response."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def begun(self, seconds: float) -> None:
        """Counts the first result of a request."""
        self._first.observe(seconds)

    def ended_early(self, reason: str) -> None:
        """Counts a request that ended before its result."""
        self._ended.labels(reason).inc()

    def done(self, model: str, job: Job | None) -> None:
        """Counts the tokens, or the texts, of a request that is done."""
        if isinstance(job, TextJob):
            self._prompt_tokens.labels(model).inc(job.n_prompt_tokens)
            self._tokens.labels(model).inc(sum(len(sample.tokens) for sample in job.samples))
        elif job is not None:
            self._labelled.labels(model).inc(len(job.texts))

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)

    def total(self, name: str) -> int:
        """The sum of a counter over its labels, of requests for states and pages apart."""
        samples = (each for metric in self.registry.collect() for each in metric.samples)
        return sum(
            int(each.value)
            for each in samples
            if each.name == f"{name}_total" and each.labels.get("path", "/v1/").startswith("/v1/")
        )
