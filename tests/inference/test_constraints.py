"""Texts that must have a form have it; words that are banned do not come."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import GenerationConfig
from llmkit.errors import ConfigError, InputNotFound
from llmkit.inference import constraints
from llmkit.inference.batching import Engine
from llmkit.inference.generated import Sample
from llmkit.inference.sampler import CountPenalty

from .conftest import encoded

Ask = Callable[..., list[Sample]]


def test_a_text_is_one_of_the_choices_and_each_can_come(llama: PreTrainedModel, ask: Ask) -> None:
    choices = ("yes", "yes, sir", "no", "你好")
    settings = {"temperature": 4.0, "top_k": 0, "num_return_sequences": 100}
    samples = ask(llama, ["Once"], choices=choices, **settings)
    assert {sample.text for sample in samples} == set(choices)
    assert {sample.finish_reason for sample in samples} <= {"stop", "eos"}


def test_a_choice_that_does_not_fit_the_length_is_refused(llama: PreTrainedModel, ask: Ask) -> None:
    with pytest.raises(ConfigError, match="more than max_new_tokens"):
        ask(llama, ["Once"], choices=("yes", "a much longer choice"), max_new_tokens=3)


def test_a_schema_may_be_given_without_a_file(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    settings, engine = GenerationConfig(max_new_tokens=40), Engine(llama, bpe)
    (sequence,) = engine.add(
        encoded(["Once"], llama, bpe, settings)[0], engine.sampler(settings, schema)
    )
    while not engine.is_idle:
        engine.step()
    assert sequence.sample().text in ('{"n":1}', '{"n":2}')


def test_a_choice_that_begins_another_needs_an_end_token(bpe: PreTrainedTokenizerFast) -> None:
    settings = GenerationConfig(choices=("yes", "yes, sir"))
    with pytest.raises(ConfigError, match="has no end token"):
        constraints.constrain(settings, bpe, [])


def test_text_matches_the_regular_expression(llama: PreTrainedModel, ask: Ask) -> None:
    pytest.importorskip("llguidance")
    pattern = r"[a-z]{2,5} (dog|猫)\."
    for sample in ask(llama, regex=pattern, micro_batch_size=5):
        assert re.fullmatch(pattern, sample.text), sample.text


def test_text_fits_the_json_schema(llama: PreTrainedModel, ask: Ask, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    for sample in ask(llama, json_schema=str(path), micro_batch_size=5):
        row = json.loads(sample.text)
        assert isinstance(row["ok"], bool)
        assert row["n"] in (1, 2)


def test_a_form_that_is_none_is_refused(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(ConfigError, match=r"does not accept this grammar"):
        constraints.constrain(GenerationConfig(regex="(a"), bpe, [0])
    with pytest.raises(InputNotFound):
        constraints.constrain(GenerationConfig(json_schema=str(tmp_path / "none")), bpe, [0])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        constraints.constrain(GenerationConfig(json_schema=str(tmp_path / "bad.json")), bpe, [0])


def test_bad_words_are_never_written_whatever_spells_them(llama: PreTrainedModel, ask: Ask) -> None:
    settings = {"max_new_tokens": 20, "temperature": 2.0, "top_k": 0}
    words = ("e", "th", " a")
    free = ask(llama, **settings)
    assert sum(any(word in sample.text for word in words) for sample in free) > 3
    for size in (1, 16):
        banned = ask(llama, bad_words=words, micro_batch_size=size, **settings)
        assert not any(word in sample.text for sample in banned for word in words)
        assert len({sample.finish_reason for sample in banned}) <= 2


def test_what_a_ban_leaves_is_drawn_by_its_own_probability(
    tiny: Callable[..., PreTrainedModel], ask: Ask, bpe: PreTrainedTokenizerFast
) -> None:
    model = tiny("llama", sharpness=60.0)
    settings = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 1}
    samples = ask(
        model, ["Once"], bad_words=("e",), num_return_sequences=1000, micro_batch_size=500,
        **settings,
    )  # fmt: skip
    with torch.no_grad():
        p = model(torch.tensor([samples[0].prompt.ids])).logits[0, -1].softmax(-1)
    kept = [id for id in range(len(p)) if "e" not in bpe.decode([id])]
    likeliest = max(kept, key=lambda id: float(p[id]))
    expected = float(p[likeliest] / p[kept].sum())
    found = sum(sample.tokens[0] == likeliest for sample in samples) / len(samples)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / len(samples)) ** 0.5


def test_counts_are_taken_off_the_logits_of_generated_tokens_alone() -> None:
    ids = torch.tensor([[3, 3, 1, 2, 1]])
    scores = CountPenalty(0.5, 0.25, prompt_length=2)(ids, torch.zeros(1, 5))
    assert scores.tolist() == [[0.0, -1.25, -0.75, 0.0, 0.0]]


def test_a_text_that_nothing_can_follow_ends(llama: PreTrainedModel, ask: Ask) -> None:
    rules = {"choices": ("aa",), "no_repeat_ngram_size": 1, "max_new_tokens": 5}
    (sample,) = ask(llama, ["x"], **rules)
    assert sample.finish_reason == "nothing_allowed"
