"""The ladder of invariants for question answering: windows of contexts, answers over whole rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from llmkit.data.examples.answers import AnswerWindows, QuestionEncoder
from llmkit.data.examples.subset import Subset
from llmkit.data.records.questions import ANSWERED, UNANSWERED, Answers, QuestionTable
from llmkit.evaluation.labels.answers import answer_figures_from
from llmkit.models import build, classifier
from llmkit.training.tasks.labels.answering import AnswerLoss
from tests.data.examples.test_answers import rows, tokenizer
from tests.jobs import metrics

LENGTH = 24


@lru_cache
def table(n: int, seed: int) -> QuestionTable:
    texts, answers = rows(n, seed)
    return QuestionTable(texts, answers, Answers((ANSWERED, UNANSWERED)), [("a", 1)] * n)


@lru_cache
def examples(n: int = 30, seed: int = 0) -> AnswerWindows:
    return QuestionEncoder(tokenizer(), LENGTH).encode(*rows(n, seed))


def small(**settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    config = classifier.new_config("bert", shape, tokenizer(), LENGTH, build.ANSWER_MODEL)
    config.pad_token_id = tokenizer().pad_token_id
    return build.new_model(config, 0, build.ANSWER_MODEL)


def task(n: int = 30, seed: int = 0) -> AnswerLoss:
    made = examples(n, seed)
    return AnswerLoss(len(made), 30, answer_figures_from(made, table(n, seed)))


def test_the_loss_is_that_of_transformers_and_rows_of_padding_count_nothing() -> None:
    model, data = small().eval(), examples()
    lengths = data.lengths.tolist()
    alike = [row for row in range(len(data)) if lengths[row] == max(lengths)][:5]
    sums = task().sums(model, data.batch([alike[0], -1, *alike[1:], -1]))
    real = data.batch(alike)
    own = ("labels", "context", "windows")
    inputs = {name: values for name, values in real.items() if name not in own}
    first, last = real["labels"].unbind(1)
    expected = model(**inputs, start_positions=first, end_positions=last).loss.item()
    assert sums["loss"].item() / data.count(alike) == pytest.approx(expected, rel=1e-5)


def test_padding_changes_no_loss() -> None:
    model, data = small().eval(), examples()
    chosen = [int(data.lengths.argmin()), int(data.lengths.argmax())]
    together = task().sums(model, data.batch(chosen))["loss"].item()
    alone = sum(task().sums(model, data.batch([row]))["loss"].item() for row in chosen)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_size_changes_no_figure(trial, size) -> None:
    runs = []
    for number in (8, size):
        run = trial(
            str(number), micro_batch=number, steps=12, model=small(), task=task(20, 9),
            examples=examples(), validation=examples(20, 9),
        )  # fmt: skip
        run.run()
        runs.append(metrics(run.directory))
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-5)
    assert {"validation_f1", "validation_exact_match"} <= runs[0][-1].keys()


def test_the_figures_of_batches_are_those_of_all_windows_and_of_a_subset_of_whole_rows() -> None:
    model, data, own = small().eval().requires_grad_(False), examples(), task()
    whole = own.sums(model, data.batch(range(len(data))))
    parts = [own.sums(model, data.batch(range(first, min(first + 7, len(data)))))
             for first in range(0, len(data), 7)]  # fmt: skip
    summed = {name: sum(part[name].numpy() for part in parts) for name in whole}
    figures = own.figures({k: v.numpy() for k, v in whole.items()}, len(data))
    assert own.figures(summed, len(data)) == pytest.approx(figures, rel=1e-5)
    subset = Subset(data, np.arange(0, len(data), 2))
    few = own.sums(model, subset.batch(range(len(subset))))
    found = own.figures({k: v.numpy() for k, v in few.items()}, len(subset))
    assert 0 <= found["exact_match"] <= found["f1"] <= 1
