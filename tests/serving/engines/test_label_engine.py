"""Texts of many requests form batches of similar length, with the outputs of each text alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import Classifier
from llmkit.models.pretrained import open_model
from llmkit.serving.engines.batch_engine import WAIT
from llmkit.serving.engines.jobs import Begun, Done, Failed
from llmkit.serving.engines.label_engine import LabelEngine, batches_by_length
from llmkit.serving.label_model import ClassifyJob
from tests.jobs import WORDS
from tests.serving.conftest import LABELS


@pytest.fixture(scope="module")
def classifier(sorter: Path) -> Classifier:
    return classify.open_classifier(open_model(str(sorter)), torch.device("cpu"), "fp32")


def job_of(classifier: Classifier, texts: list[str]) -> ClassifyJob:
    rows = [(text,) for text in texts]
    outputs = np.zeros((len(rows), len(LABELS)), np.float32)
    encoded = classifier.encoder.encode(rows)
    return ClassifyJob(rows, encoded, outputs.__setitem__, outputs=outputs)


def texts(count: int) -> list[str]:
    words = itertools.cycle(WORDS)
    return [" ".join(itertools.islice(words, 1 + n % 13)) for n in range(count)]


@given(st.lists(st.integers(1, 600), max_size=200))
def test_every_row_is_in_one_batch_that_fits(lengths: list[int]) -> None:
    given = np.array(lengths, np.int64)
    batches = list(batches_by_length(given, 1024))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest, shortest = given[batch].max(), given[batch].min()
        assert len(batch) == 1 or len(batch) * longest <= 1024
        assert longest <= max(1.25 * shortest, shortest + 8)


def test_outputs_are_those_of_each_text_alone(classifier: Classifier) -> None:
    engine = LabelEngine(classifier)
    given = texts(60)
    jobs = [job_of(classifier, given[n : n + 1 + n % 4]) for n in range(0, 56, 4)]
    for job in jobs:
        engine.add(job, 0.0)
    assert engine.wait(0.0) == WAIT
    assert engine.step(0.0) == []
    begun = engine.step(WAIT)
    assert begun == [(job, Begun()) for job in jobs]
    events = []
    while engine.wait(WAIT) is not None:
        events += engine.step(WAIT)
    assert sorted(jobs.index(job) for job, event in events if event == Done()) == list(
        range(len(jobs))
    )
    for job in jobs:
        expected = classifier.outputs(job.texts)
        np.testing.assert_allclose(job.outputs, expected, atol=1e-5)


def test_a_cancelled_job_costs_nothing_and_reports_nothing(classifier: Classifier) -> None:
    engine = LabelEngine(classifier)
    gone, kept, late = (job_of(classifier, texts(n)) for n in (3, 2, 2))
    for job in (gone, kept):
        engine.add(job, 0.0)
    engine.step(WAIT)
    engine.add(late, WAIT)
    engine.cancel(gone)
    engine.cancel(late)
    assert engine.jobs == [kept]
    events = []
    while engine.wait(WAIT) is not None:
        events += engine.step(WAIT)
    assert events == [(kept, Done())]
    assert not gone.outputs.any()


def test_a_job_without_rows_is_done_at_once(classifier: Classifier) -> None:
    engine = LabelEngine(classifier)
    empty, other = job_of(classifier, []), job_of(classifier, ["the cat"])
    for job in (empty, other, job_of(classifier, [])):
        engine.add(job, 0.0)
    events = engine.step(WAIT)
    assert (empty, Done()) in events
    assert engine.step(WAIT) == [(other, Done())]
    assert engine.wait(WAIT) is None


def test_a_batch_that_fails_is_repeated_for_each_request(classifier: Classifier) -> None:
    bad, good = job_of(classifier, ["the 7"]), job_of(classifier, ["the cat"])
    token = min({*bad.encoded.ids.tolist()} - {*good.encoded.ids.tolist()})

    def check(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0] == token).any():
            raise RuntimeError("a poisoned token")

    hook = classifier.model.get_input_embeddings().register_forward_pre_hook(check)
    engine = LabelEngine(classifier)
    for job in (bad, good):
        engine.add(job, 0.0)
    events = []
    while engine.wait(WAIT) is not None:
        events += engine.step(WAIT)
    hook.remove()
    ends = dict(each for each in events if each[1] != Begun())
    assert ends[good] == Done()
    assert isinstance(ends[bad], Failed)
    np.testing.assert_allclose(good.outputs, classifier.outputs(good.texts), atol=1e-5)
