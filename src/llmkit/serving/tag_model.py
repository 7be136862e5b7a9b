"""A served tagger: from the body of a request to a job, and from its outputs to labelled spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.examples.tagged import NO_WORD, TokenWindows
from llmkit.data.records.tagging.words import WordSpans, split_words
from llmkit.inference.labels import tag
from llmkit.inference.labels.tag import Tagger
from llmkit.reporting.predictions import DIGITS
from llmkit.serving.bodies import ClassifyBody
from llmkit.serving.engines.jobs import LabelJob
from llmkit.serving.named_model import RowModel
from llmkit.serving.refusals import Refusal, failed


@dataclass(eq=False, kw_only=True)
class TagJob(LabelJob):
    """Texts whose words are tagged."""

    windows: TokenWindows
    words: Sequence[WordSpans]
    logits: NDArray[np.float32]
    """[words, tags], complete once it is done."""


@dataclass(frozen=True)
class TagModel(RowModel[ClassifyBody]):
    """A loaded tagger, as the handlers of requests use it."""

    tagger: Tagger

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its spans."""
        return self.tagger.tags.classes

    def job(self, body: ClassifyBody) -> TagJob:
        """The job of a request; raises Refusal for pairs of texts."""
        texts = body.texts()
        if any(len(each) > 1 for each in texts):
            raise Refusal("input: a tagger reads single texts, not pairs", param="input")
        words = [split_words(text) for (text,) in texts]
        windows = self.tagger.encoder.encode(texts, words)
        logits = np.zeros((len(windows.sources), len(self.tagger.tags)), np.float32)
        starts = windows.encoded.starts

        def keep(row: int, values: NDArray[np.float32]) -> None:
            owners = windows.owners[starts[row] : starts[row + 1]]
            owned = owners != NO_WORD
            logits[owners[owned]] = values[: len(owners)][owned]

        return TagJob(texts, windows.encoded, keep, windows=windows, words=words, logits=logits)

    def response(self, job: TagJob) -> dict[str, Any]:
        """The labelled spans of a job that is done, as `llmkit predict` gives them.

        Raises Refusal if the outputs of the model are not finite.
        """
        found = self.tagger.word_tags(job.windows, job.logits)
        if not np.isfinite(found.probabilities).all():
            raise failed("the model's outputs are NaN or infinite")
        data = [self._tagged(number, job, found) for number in range(len(job.texts))]
        return self.listing(data, int(job.windows.tokens.sum()))

    def _tagged(self, number: int, job: TagJob, found: tag.WordTags) -> dict[str, Any]:
        first = sum(map(len, job.words[:number]))
        own = slice(first, first + len(job.words[number]))
        chances = found.probabilities[own]
        spans = tag.tagged_spans(
            self.tagger.tags, job.texts[number][0], job.words[number], found.tags[own], chances
        )
        least = round(float(chances.min(initial=1.0)), DIGITS)
        return {"index": number, "spans": list(spans), "probability": least}
