"""A served classifier: from the body of a request to a job, and from its outputs to labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.records.labelled import Row
from llmkit.errors import DataError
from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import Classifier
from llmkit.serving.bodies import ClassifyBody
from llmkit.serving.engines.jobs import LabelJob
from llmkit.serving.named_model import RowModel
from llmkit.serving.refusals import Refusal, failed


@dataclass(eq=False, kw_only=True)
class ClassifyJob(LabelJob):
    """Texts, or pairs of texts, to classify."""

    outputs: NDArray[np.float32]
    """[texts, labels], complete once it is done."""


@dataclass(frozen=True)
class LabelModel(RowModel[ClassifyBody]):
    """A loaded classifier, as the handlers of requests use it."""

    classifier: Classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels, or for regression the name of its number."""
        return self.classifier.head.names

    def job(self, body: ClassifyBody) -> ClassifyJob:
        """The job of a classification; raises Refusal for pairs if the model was trained on single
        texts, and vice versa."""
        texts = body.texts()
        if len({len(each) for each in texts}) > 1:
            raise Refusal("input: is a mixture of texts and pairs of texts", param="input")
        columns = tuple(range(len(texts[0])))
        try:
            classify.check_number_of_texts(self.classifier.model.config, columns, "input")
        except DataError as fault:
            what = fault.what.partition("; ")[0].partition(", from")[0]
            given = "pairs of texts" if len(columns) > 1 else "single texts"
            raise Refusal(f"input: {what}, and these are {given}", param="input") from fault
        encoded = self.classifier.encoder.encode(texts)
        outputs = np.zeros((len(texts), len(self.labels)), np.float32)
        return ClassifyJob(texts, encoded, outputs.__setitem__, outputs=outputs)

    def response(self, job: ClassifyJob) -> dict[str, Any]:
        """The labels and scores of a job that is done, as `llmkit predict` gives them.

        Raises Refusal if the outputs of the model are not finite.
        """
        if not np.isfinite(job.outputs).all():
            raise failed("the model's outputs are NaN or infinite")
        head, encoded = self.classifier.head, job.encoded
        chances = classify.probabilities(head.problem_type, job.outputs)
        data: list[dict[str, Any]] = []
        for number, (texts, values) in enumerate(zip(job.texts, chances, strict=True)):
            row = Row(number, "", texts, None, {})
            found = classify.prediction_of(head, row, values, ())
            kept, whole = int(encoded.lengths[number]), int(encoded.uncut[number])
            data.append(
                {
                    "index": number,
                    "label": found.label,
                    "scores": dict(found.probabilities),
                    **({"tokens_cut": whole - kept} if kept < whole else {}),
                }
            )
        return self.listing(data, int(encoded.lengths.sum()))
