"""What the engine reports of a job: its begin once, all new text, and its end last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.config.load import load_config
from llmkit.inference import generate, prompts
from llmkit.inference.requests import PromptRequest
from llmkit.models.pretrained import open_model
from llmkit.serving.engines.jobs import Begun, Done, Event, Failed, NewText, TextJob
from llmkit.serving.engines.text_engine import TextEngine


@pytest.fixture
def engine(talker: Path) -> TextEngine:
    config = load_config("serve", None, [f"serve.models={talker}"]).config
    return TextEngine(generate.engine(config, open_model(str(talker)), torch.device("cpu")))


def job_of(engine: TextEngine, texts: list[str], streamed: bool, n: int = 1) -> TextJob:
    settings = load_config("generate", None, ["generation.max_new_tokens=9"]).config.generation
    settings = settings.changed(num_return_sequences=n, explain=1)
    inner = engine.engine
    asked = [PromptRequest(text, "prompt") for text in texts]
    encoded = prompts.encode_prompts(asked, inner.tokenizer, inner.model.config, settings, seed=1)
    return TextJob(encoded, inner.sampler(settings), streamed)


def events_of(engine: TextEngine) -> list[tuple[TextJob, Event]]:
    found = []
    while engine.wait(0.0) is not None:
        found += engine.step(0.0)
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_the_pieces_of_a_stream_are_its_text_and_steps(engine: TextEngine, n: int) -> None:
    streamed = job_of(engine, ["the cat", "a dog"], True, n)
    whole = job_of(engine, ["the cat", "a dog"], False, n)
    engine.add(streamed, 0.0)
    engine.add(whole, 0.0)
    assert engine.jobs == [streamed, whole]
    events = events_of(engine)
    assert [event for job, event in events if job is whole] == [Begun(), Done()]
    own = [event for job, event in events if job is streamed]
    assert own[0] == Begun()
    assert own[-1] == Done()
    assert [sample.text for sample in streamed.samples] == [s.text for s in whole.samples]
    for place, sample in enumerate(streamed.samples):
        pieces = [each for each in own if isinstance(each, NewText) and each.place == place]
        assert "".join(piece.text for piece in pieces) == sample.text
        assert [step for piece in pieces for step in piece.steps] == list(sample.steps)
        assert [piece.ended for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].ended == sample.finish_reason
    assert engine.jobs == []


def test_a_cancelled_job_reports_nothing_more(engine: TextEngine) -> None:
    gone, kept = (job_of(engine, ["the cat"], True) for _ in range(2))
    engine.add(gone, 0.0)
    engine.add(kept, 0.0)
    engine.step(0.0)
    engine.cancel(gone)
    assert {id(job) for job, _ in events_of(engine)} == {id(kept)}


def test_a_fault_of_one_text_ends_its_job_and_frees_the_others(engine: TextEngine) -> None:
    job, other = job_of(engine, ["the cat", "a dog"], False, 2), job_of(engine, ["x"], False)
    engine.add(job, 0.0)
    engine.add(other, 0.0)
    engine.step(0.0)
    job.sequences[2].fail(ValueError("broken"))
    events = events_of(engine)
    [failed] = [event for each, event in events if each is job]
    assert isinstance(failed, Failed)
    assert [event for each, event in events if each is other][-1] == Done()
    assert engine.engine.is_idle
