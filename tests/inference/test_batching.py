"""An open queue: whoever joins or leaves, and with what settings, a sequence is as if alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import GenerationConfig
from llmkit.errors import ConfigError, DataError
from llmkit.inference import batching, generate
from llmkit.inference.batching import Engine
from llmkit.inference.constraints import Choice
from llmkit.inference.generated import Sample
from llmkit.inference.prompts import Prompt
from llmkit.inference.sequence import Sequence

from .conftest import TEXTS, encoded

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": False},
    {"temperature": 1.5, "top_k": 0},
    {"top_p": 0.8, "min_p": 0.02, "stop": ("a", "th")},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    {"choices": ("yes", "yes, sir", "no")},
    {"bad_words": ("e", " a"), "temperature": 2.0, "top_k": 0},
    {"frequency_penalty": 0.5, "max_new_tokens": 25, "explain": 2},
)
LONG = "to be or not to be, that is the question " * 2


@pytest.fixture
def prompts(llama: PreTrainedModel, bpe: PreTrainedTokenizerFast) -> list[Prompt]:
    """Sixteen prompts, one setting after the other, each with a seed of its own."""
    made = []
    for number, text in enumerate(TEXTS):
        settings = GenerationConfig(**({"max_new_tokens": 16} | SETTINGS[number % len(SETTINGS)]))
        made += encoded([text], llama, bpe, settings, seed=number)
    return made


def of_number(number: int) -> GenerationConfig:
    return GenerationConfig(**SETTINGS[number % len(SETTINGS)])


def finish(engine: Engine) -> None:
    while not engine.is_idle:
        engine.step()


def alone(engine: Engine, prompt: Prompt, settings: GenerationConfig) -> Sample:
    (sequence,) = engine.add(prompt, engine.sampler(settings))
    finish(engine)
    return sequence.sample()


def assert_same(sequences: list[Sequence], expected: list[Sample]) -> None:
    for sequence, sample in zip(sequences, expected, strict=True):
        found = dataclasses.replace(sequence.sample(), logprob=0.0, steps=())
        assert found == dataclasses.replace(sample, logprob=0.0, steps=())
        assert sequence.logprob == pytest.approx(sample.logprob, abs=1e-3)
        assert len(sequence.steps) == len(sample.steps)


@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize("gap", [0, 1, 4])
def test_sequences_of_other_settings_in_one_batch_each_equal_their_run_alone(
    size: int, gap: int, llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, prompts: list[Prompt]
) -> None:
    single = Engine(llama, bpe, 1)
    expected = [alone(single, prompt, of_number(n)) for n, prompt in enumerate(prompts)]
    engine = Engine(llama, bpe, size)
    sequences: list[Sequence] = []
    for number, prompt in enumerate(prompts):
        sequences += engine.add(
            prompt, engine.sampler(of_number(number)), is_streamed=bool(number % 2)
        )
        for _ in range(gap):
            engine.step()
    finish(engine)
    assert_same(sequences, expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_a_sequence_that_joins_later_and_is_longer_than_all_equals_its_run_alone(
    architecture: str, tiny: Callable[..., PreTrainedModel], bpe: PreTrainedTokenizerFast
) -> None:
    model = tiny(architecture)
    settings = GenerationConfig(max_new_tokens=20, min_new_tokens=20)
    asked = encoded(["A", "Once", LONG, "x", LONG[:50]], model, bpe, settings)
    assert len(asked[2].ids) > len(asked[1].ids) + 20
    single = Engine(model, bpe, 1)
    expected = [alone(single, prompt, settings) for prompt in asked]
    engine = Engine(model, bpe, 8)
    sampler = engine.sampler(settings)
    sequences = [*engine.add(asked[0], sampler), *engine.add(asked[1], sampler)]
    for prompt in asked[2:]:
        engine.step()
        engine.step()
        sequences += engine.add(prompt, sampler)
    finish(engine)
    assert_same(sequences, expected)


def test_an_aborted_sequence_frees_its_place_and_changes_nothing_of_the_others(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(max_new_tokens=20, min_new_tokens=20)
    asked = encoded(TEXTS, llama, bpe, settings)
    single = Engine(llama, bpe, 1)
    expected = [alone(single, prompt, settings) for prompt in asked]
    engine = Engine(llama, bpe, 4)
    sampler = engine.sampler(settings)
    sequences = [sequence for prompt in asked for sequence in engine.add(prompt, sampler)]
    engine.step()
    running = [number for number, sequence in enumerate(sequences) if sequence.tokens]
    assert len(running) == 4
    gone = [running[1], running[2], len(asked) - 1]  # two that run, one that waits
    kept = [number for number in range(len(asked)) if number not in gone]
    engine.abort([sequences[number] for number in gone])
    lengths = [len(sequences[number].tokens) for number in gone]
    moved = engine.step() + engine.step()
    assert len(moved) == len(set(moved)) == 4  # the other two, and two in their place
    assert not any(sequences[number] in moved for number in gone)
    finish(engine)
    assert [sequences[number].ended for number in gone] == ["aborted"] * 3
    assert [len(sequences[number].tokens) for number in gone] == lengths
    assert_same([sequences[n] for n in kept], [expected[n] for n in kept])


def test_first_tokens_have_their_own_step_and_newcomers_never_stop_the_batch(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(max_new_tokens=40, min_new_tokens=40)
    engine = Engine(llama, bpe)
    running: list[Sequence] = []
    for prompt in encoded(TEXTS[:6], llama, bpe, settings):
        running += engine.add(prompt, engine.sampler(settings))
        assert engine.step() == running[-1:]
        waiting = engine.add(prompt, engine.sampler(settings))
        assert engine.step() == running
        running += waiting
        assert engine.step() == waiting
        assert engine.step() == running


def test_an_engine_whose_sequences_are_all_aborted_is_idle_and_starts_again(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(max_new_tokens=12)
    first, second = encoded(["Once", LONG], llama, bpe, settings)
    expected = alone(Engine(llama, bpe, 1), second, settings)
    engine = Engine(llama, bpe)
    sequences = engine.add(first, engine.sampler(settings))
    engine.step()
    engine.abort(sequences)
    assert engine.is_idle
    assert engine.step() == []
    sequences = engine.add(second, engine.sampler(settings))
    finish(engine)
    assert_same(sequences, [expected])


def test_every_stream_is_its_text_in_whole_characters(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, prompts: list[Prompt]
) -> None:
    engine = Engine(llama, bpe, 5)
    for number, prompt in enumerate(prompts):
        engine.add(prompt, engine.sampler(of_number(number)), is_streamed=True)
    streams: dict[Sequence, list[str]] = {}
    while not engine.is_idle:
        for sequence in engine.step():
            streams.setdefault(sequence, []).append(sequence.new_text())
    assert len(streams) == len(prompts)
    for sequence, pieces in streams.items():
        assert "".join(pieces) == sequence.sample().text
    assert sum(len([piece for piece in pieces if piece]) > 2 for pieces in streams.values()) > 8


def test_a_step_returns_each_sequence_that_got_a_token_once(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, prompts: list[Prompt]
) -> None:
    engine = Engine(llama, bpe, 4)
    added = [
        sequence
        for number, prompt in enumerate(prompts)
        for sequence in engine.add(prompt, engine.sampler(of_number(number)))
    ]
    while not engine.is_idle:
        before = [(len(sequence.tokens), sequence.ended) for sequence in added]
        moved = engine.step()
        after = [(len(sequence.tokens), sequence.ended) for sequence in added]
        changed = {s for s, b, a in zip(added, before, after, strict=True) if a != b}
        assert set(moved) == changed
        assert len(moved) == len(changed)


def test_a_prompt_that_conflicts_with_its_settings_is_refused_alone(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(max_new_tokens=3)
    engine = Engine(llama, bpe)
    (prompt,) = encoded(["Once"], llama, bpe, settings)
    (running,) = engine.add(prompt, engine.sampler(settings))
    with pytest.raises(ConfigError, match="more than max_new_tokens"):
        engine.add(prompt, engine.sampler(GenerationConfig(choices=("a much longer choice",))))
    finish(engine)
    assert len(running.sample().tokens) == 3


def test_a_list_that_is_refused_or_left_early_leaves_the_engine_idle(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    engine = Engine(llama, bpe, 2)
    settings = GenerationConfig(choices=("yes", "a longer choice"), max_new_tokens=20)
    asked = encoded(TEXTS[:4], llama, bpe, settings)
    asked[0] = dataclasses.replace(asked[0], max_new_tokens=2)
    with pytest.raises(ConfigError, match="more than max_new_tokens"):
        list(generate.generate_samples(engine, asked, engine.sampler(settings)))
    assert engine.is_idle
    left = generate.generate_samples(engine, asked[1:], engine.sampler(settings))
    next(left)
    left.close()
    assert engine.is_idle


def test_a_sequence_with_non_finite_logits_ends_alone(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationConfig(max_new_tokens=6, min_new_tokens=6)
    asked = encoded(["Once", "The cat", "x"], llama, bpe, settings)
    expected = [alone(Engine(llama, bpe, 1), prompt, settings) for prompt in asked]
    embedding = llama.get_input_embeddings()
    spoilt = asked[1].ids[-1]
    assert all(spoilt not in (*s.prompt.ids, *s.tokens) for s in (expected[0], expected[2]))
    weight = embedding.weight.data.clone()
    weight[spoilt] = float("nan")
    monkeypatch.setattr(embedding.weight, "data", weight)
    engine = Engine(llama, bpe)
    added = [s for prompt in asked for s in engine.add(prompt, engine.sampler(settings))]
    finish(engine)
    with pytest.raises(DataError, match="NaN or infinite"):
        added[1].sample()
    assert_same([added[0], added[2]], [expected[0], expected[2]])


def test_prompts_of_all_lengths_are_computed_a_bounded_number_at_once(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationConfig(max_new_tokens=4)
    asked = encoded([*TEXTS, LONG], llama, bpe, settings)
    bound = 2 * len(asked[-1].ids)
    monkeypatch.setattr(batching, "PROMPT_TOKENS", bound)
    sizes: list[int] = []
    hook = llama.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    engine = Engine(llama, bpe, 32)
    for prompt in asked:
        engine.add(prompt, engine.sampler(settings))
    finish(engine)
    hook.remove()
    assert max(sizes) <= bound


class _Poisoned:
    """A hook on an embedding that raises where a text has a token."""

    def __init__(self, model: PreTrainedModel, token: int) -> None:
        self.token = token
        self.hook = model.get_input_embeddings().register_forward_pre_hook(self.check)

    def check(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0] == self.token).any():
            raise RuntimeError("a poisoned token")


@pytest.fixture
def poison(llama: PreTrainedModel) -> Iterator[Callable[[int], None]]:
    """Makes the forward passes fail in which a token occurs."""
    made: list[_Poisoned] = []
    yield lambda token: made.append(_Poisoned(llama, token))
    for each in made:
        each.hook.remove()


def test_a_prompt_that_cannot_be_computed_fails_alone(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, poison: Callable[[int], None]
) -> None:
    settings = GenerationConfig(max_new_tokens=6, min_new_tokens=6)
    asked = encoded(["Once", "The cat", "x"], llama, bpe, settings)
    expected = [alone(Engine(llama, bpe, 1), prompt, settings) for prompt in asked]
    token = asked[1].ids[-1]
    assert all(token not in (*s.prompt.ids, *s.tokens) for s in (expected[0], expected[2]))
    poison(token)
    engine = Engine(llama, bpe)
    added = [s for prompt in asked for s in engine.add(prompt, engine.sampler(settings))]
    moved = engine.step()
    assert set(added) <= set(moved)
    assert engine.failures == 2  # all three together, then one alone
    finish(engine)
    assert engine.failures == 0
    with pytest.raises(RuntimeError, match="a poisoned token"):
        added[1].sample()
    assert_same([added[0], added[2]], [expected[0], expected[2]])


def test_a_failed_pass_ends_the_sequences_in_it_and_the_engine_starts_again(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast, poison: Callable[[int], None]
) -> None:
    settings = GenerationConfig(max_new_tokens=6, min_new_tokens=6)
    asked = encoded(["Once", "The cat", "x"], llama, bpe, settings)
    expected = [alone(Engine(llama, bpe, 1), prompt, settings) for prompt in asked]
    token = expected[0].tokens[2]
    assert all(token not in (*s.prompt.ids, *s.tokens[:-1]) for s in expected[1:])
    poison(token)
    engine = Engine(llama, bpe, 2)
    added = [s for prompt in asked for s in engine.add(prompt, engine.sampler(settings))]
    finish(engine)
    for sequence in added[:2]:
        with pytest.raises(RuntimeError, match="a poisoned token"):
            sequence.sample()
    assert_same(added[2:], expected[2:])
    assert engine.failures == 0


def test_a_fault_in_the_rules_of_a_sequence_ends_it_alone(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(max_new_tokens=6, min_new_tokens=6)
    asked = encoded(["Once", "The cat", "x", "A"], llama, bpe, settings)
    expected = [alone(Engine(llama, bpe, 1), prompt, settings) for prompt in asked]

    class FaultyMask(Choice):
        def allowed(self) -> list[int]:
            raise ZeroDivisionError

    class FaultyStep(Choice):
        def allowed(self) -> list[int]:
            return list(range(9))

        def take(self, token: int) -> None:
            raise IndexError

    engine = Engine(llama, bpe)
    added = [s for prompt in asked for s in engine.add(prompt, engine.sampler(settings))]
    added[1].constraint, added[2].constraint = FaultyMask([], ()), FaultyStep([], ())
    finish(engine)
    assert engine.failures == 0
    with pytest.raises(ZeroDivisionError):
        added[1].sample()
    with pytest.raises(IndexError):
        added[2].sample()
    assert_same([added[0], added[3]], [expected[0], expected[3]])
