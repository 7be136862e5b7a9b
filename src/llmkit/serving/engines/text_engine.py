"""Generates the texts of many requests together; each joins the batch between two tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.inference.batching import Engine
from llmkit.inference.sequence import Sequence
from llmkit.serving.engines.jobs import Begun, Done, Event, Failed, FirstSent, NewText, TextJob


@dataclass
class _Text:
    """A text of a job, and what was reported of it."""

    job: TextJob
    place: int
    sequence: Sequence
    steps: int = 0
    is_new: bool = True

    def piece(self) -> NewText | None:
        """What is new and not reported yet; nothing while characters are incomplete."""
        ended = None if self.sequence.ended is None else self.sequence.sample().finish_reason
        new = self.sequence.new_text()
        if not new and ended is None:
            return None
        steps, self.steps = self.sequence.steps[self.steps :], len(self.sequence.steps)
        return NewText(self.place, new, steps, ended)


class TextEngine:
    """A language model for the engine's thread, which alone may call it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._texts: dict[Sequence, _Text] = {}

    @property
    def failures(self) -> int:
        """Number of forward passes that have failed one after another."""
        return self.engine.failures

    @property
    def jobs(self) -> list[TextJob]:
        """The jobs that are not done."""
        return list(dict.fromkeys(text.job for text in self._texts.values()))

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None without any job."""
        return None if self.engine.is_idle else 0.0

    def add(self, job: TextJob, now: float) -> None:
        """Queues the texts of a job; raises ConfigError for a prompt that cannot be combined with a
        constraint."""
        try:
            for prompt in job.prompts:
                job.sequences += self.engine.add(prompt, job.sampler, job.is_streamed)
        except Exception:
            self.engine.abort(job.sequences)
            raise
        for place, sequence in enumerate(job.sequences):
            self._texts[sequence] = _Text(job, place, sequence)

    def cancel(self, job: TextJob) -> None:
        """Ends the texts of a job and frees their rows of the batch."""
        self.engine.abort(job.sequences)
        for sequence in job.sequences:
            self._texts.pop(sequence, None)

    def step(self, now: float) -> list[tuple[TextJob, Event]]:
        """Generates the first tokens of new texts, or else a token for each text of the batch;
        returns the events of their jobs."""
        found: list[tuple[TextJob, Event]] = []
        for sequence in self.engine.step():
            if (text := self._texts.get(sequence)) is not None:
                found += [(text.job, event) for event in self._events(text)]
        return found

    def _events(self, text: _Text) -> Iterator[Event]:
        job, sequence = text.job, text.sequence
        if sequence.fault is not None:
            self.cancel(job)
            yield Failed(sequence.fault)
            return
        if not job.has_begun:
            job.has_begun = True
            yield Begun()
        if job.is_streamed and (piece := text.piece()) is not None:
            yield piece
        if job.is_streamed and text.is_new:
            yield FirstSent()
        text.is_new = False
        if sequence.ended is not None:
            del self._texts[sequence]
            if not any(each in self._texts for each in job.sequences):
                job.samples = [each.sample() for each in job.sequences]
                yield Done()
