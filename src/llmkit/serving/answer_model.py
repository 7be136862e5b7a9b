"""A served model that answers questions: from the body of a request to a job, and from its outputs
to spans of contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.answers import AnswerWindows
from llmkit.data.records.questions import QuestionRow
from llmkit.inference.labels import answer
from llmkit.inference.labels.answer import Answerer, WindowAnswers
from llmkit.serving.bodies import AnswerBody
from llmkit.serving.engines.jobs import LabelJob
from llmkit.serving.named_model import RowModel
from llmkit.serving.refusals import failed


@dataclass(eq=False, kw_only=True)
class AnswerJob(LabelJob):
    """Questions with contexts."""

    windows: AnswerWindows
    found: WindowAnswers
    """[windows, 5], complete once it is done."""


@dataclass(frozen=True)
class AnswerModel(RowModel[AnswerBody]):
    """A loaded model that answers questions, as the handlers of requests use it."""

    answerer: Answerer

    paths = "/v1/answer"

    @property
    def labels(self) -> tuple[str, ...]:
        """Whether questions may be unanswered."""
        return answer.known_answers(self.answerer.model.config).classes

    def job(self, body: AnswerBody) -> AnswerJob:
        """The job of a request; raises Refusal for as many contexts as questions or one."""
        texts = body.texts()
        windows = self.answerer.encoder.encode(texts)
        found = np.zeros((len(windows), 5))

        def keep(row: int, values: NDArray[np.float32]) -> None:
            context = windows.batch([row])["context"]
            logits = torch.from_numpy(values[None, : context.shape[1]])
            mask = torch.ones_like(context)
            [found[row]] = answer.found_in(logits, mask, context, self.answerer.longest).numpy()

        return AnswerJob(texts, windows.encoded, keep, windows=windows, found=found)

    def response(self, job: AnswerJob) -> dict[str, Any]:
        """The answers of a job that is done, as `llmkit predict` gives them.

        Raises Refusal if the outputs of the model are not finite.
        """
        rows = [QuestionRow(n, "", texts, None) for n, texts in enumerate(job.texts)]
        answers = answer.answers_in(self.answerer, rows, job.windows, job.found, ())
        if any(each.answer is None for each in answers):
            raise failed("the model's outputs are NaN or infinite")
        data = [{"index": n, **each.found} for n, each in enumerate(answers)]
        return self.listing(data, int(job.windows.tokens.sum())) | _cut(job.windows)


def _cut(windows: AnswerWindows) -> dict[str, Sequence[str]]:
    n_cut = windows.cut_questions
    return {"warnings": [f"{n_cut} questions were cut at the end"]} if n_cut else {}
