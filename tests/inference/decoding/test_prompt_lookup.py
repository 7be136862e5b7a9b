"""Prompt lookup guesses what followed the same tokens before, and changes no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from llmkit.config.schema import GenerationConfig
from llmkit.inference.batching import Engine
from llmkit.inference.decoding.prompt_lookup import NGRAM, PromptLookup
from llmkit.inference.generated import Sample
from llmkit.models.kernels import int8, native
from tests.inference.conftest import ask, bpe, encoded, tiny  # noqa: F401

REPEATING = "the cat sat on the mat, the cat sat on the mat, the cat sat on the mat, the cat"
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"temperature": 0.7, "top_k": 0},
    "stop": {"do_sample": False, "stop": ("ig" + "\ufffd\x05\ufffd5\ufffdig" * 3,)},
    "penalties": {"do_sample": False, "frequency_penalty": 0.3, "no_repeat_ngram_size": 9},
    "bad-words": {"temperature": 0.5, "bad_words": ("on", "e")},
    "explained": {"temperature": 0.5, "explain": 2},
    "choices": {"choices": (" sat on the mat, the cat sat on the mat, the dog", " sat")},
    "context": {"max_new_tokens": 96, "do_sample": False},
    "one-token": {"max_new_tokens": 1},
}  # fmt: skip


def copying(model: PreTrainedModel) -> PreTrainedModel:
    """The model with flat layers: its next token depends on the newest alone, so texts repeat."""
    for name, parameter in model.named_parameters():
        if "layers" in name and "proj" in name:
            parameter.data.mul_(0.02)
    return model


def steps(
    model: PreTrainedModel,
    bpe: Any,  # noqa: F811
    settings: GenerationConfig,
    text: str,
) -> int:
    """Number of steps of the engine for one text."""
    engine, count = Engine(model, bpe), 0
    (prompt,) = encoded([text], model, bpe, settings)
    engine.add(prompt, engine.sampler(settings))
    while not engine.is_idle:
        engine.step()
        count += 1
    return count


@pytest.mark.parametrize("name", SETTINGS)
def test_a_text_is_the_same_with_and_without_lookup(
    name: str,
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    ask: Callable[..., list[Sample]],  # noqa: F811
) -> None:
    model = copying(tiny("llama", sharpness=120.0))
    settings = {"max_new_tokens": 40, **SETTINGS[name]}
    for seed in range(3):
        with_lookup, without = (
            ask(model, [REPEATING], seed, prompt_lookup_num_tokens=most, **settings)
            for most in (8, 0)
        )
        assert with_lookup == without


@pytest.mark.parametrize("convert", [int8.to_bf16, int8.quantize])
def test_a_text_of_smaller_weights_is_the_same_too(
    convert: Callable[[PreTrainedModel], PreTrainedModel],
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    ask: Callable[..., list[Sample]],  # noqa: F811
) -> None:
    model = convert(copying(tiny("llama", sharpness=120.0)))
    for settings in ({"do_sample": False}, {"temperature": 0.7}):
        with_lookup, without = (
            ask(model, [REPEATING], prompt_lookup_num_tokens=most, **settings) for most in (8, 0)
        )
        assert with_lookup == without


@pytest.mark.skipif(native.decoder_library() is None, reason="there is no C compiler")
def test_a_text_that_repeats_takes_fewer_steps(
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    bpe: Any,  # noqa: F811
) -> None:
    model = copying(tiny("llama", sharpness=120.0))
    for chosen in ({"do_sample": False}, {"temperature": 0.01}):
        common = {"max_new_tokens": 40, "min_new_tokens": 40, **chosen}
        without = GenerationConfig(prompt_lookup_num_tokens=0, **common)
        assert steps(model, bpe, without, REPEATING) == 40
        assert steps(model, bpe, GenerationConfig(**common), REPEATING) < 20


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_guess_followed_the_same_tokens_before(ids: Sequence[int]) -> None:
    lookup = PromptLookup(ids[:5])
    for place in range(5, len(ids)):
        guesses, ngram = lookup.guesses(8), list(ids[place - NGRAM : place])
        ends = [end for end in range(NGRAM, place) if list(ids[end - NGRAM : end]) == ngram]
        assert not guesses or guesses[0] in {ids[end] for end in ends}
        lookup.extend([ids[place]])
    assert len(lookup) == len(ids)


def test_a_loop_is_continued_beyond_its_end() -> None:
    lookup = PromptLookup([7, 1, 2, 3] * 4)
    assert lookup.guesses(9) == [7, 1, 2, 3, 7, 1, 2, 3, 7]
    assert PromptLookup([1, 2, 3, 4, 5, 6]).guesses(9) == []
