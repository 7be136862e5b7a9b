"""Writes the texts for the sources of many requests together: those with equal settings and a
similar length form batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmkit.inference.encoder_decoder import TargetGenerator
from llmkit.inference.generated import Sample
from llmkit.inference.prompts import Prompt
from llmkit.serving.engines.batch_engine import BatchEngine, BatchRows
from llmkit.serving.engines.jobs import Done, Event, NewText, TargetJob


class TargetEngine(BatchEngine[TargetJob]):
    """An encoder-decoder model. A step writes all texts of a batch."""

    at_once = 64

    def size(self, job: TargetJob) -> int:
        """Number of sources."""
        return len(job.prompts)

    def plan(self, jobs: Sequence[TargetJob]) -> Iterator[BatchRows]:
        """Batches of sources with equal settings."""
        self._rows: list[tuple[TargetGenerator, Prompt]] = [
            (job.generator, prompt) for job in jobs for prompt in job.prompts
        ]
        left = list(range(len(self._rows)))
        while left:
            generator = self._rows[left[0]][0]
            same = [n for n in left if self._rows[n][0].settings == generator.settings]
            left = [n for n in left if n not in set(same)]
            for batch in generator.batches([self._rows[n][1] for n in same]):
                yield np.array([same[n] for n in batch])

    def compute(self, rows: list[int]) -> list[list[Sample]]:
        """The texts of each source."""
        return self._rows[rows[0]][0].batch_texts([self._rows[row][1] for row in rows])

    def keep(self, job: TargetJob, row: int, result: list[Sample]) -> None:
        """Keeps the texts of a source."""
        job.found[row] = result

    def ended(self, job: TargetJob) -> list[Event]:
        """The texts in the order of their sources, each as one piece of a stream."""
        job.samples = [each for _, several in sorted(job.found.items()) for each in several]
        pieces: list[Event] = []
        if job.is_streamed:
            pieces += [
                NewText(place, each.text, (), each.finish_reason)
                for place, each in enumerate(job.samples)
            ]
        return [*pieces, Done()]
