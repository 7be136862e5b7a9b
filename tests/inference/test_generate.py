"""Each text is as if it were alone, and as plain transformers writes it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmkit.config.schema import GenerationConfig
from llmkit.errors import DataError
from llmkit.inference import batching, generate, prompts
from llmkit.inference.batching import Engine
from llmkit.inference.generated import Sample
from llmkit.inference.requests import PromptRequest
from llmkit.inference.sequence import Sequence
from tests.jobs import SHARED

from .conftest import TEXTS, encoded

STORIES = SHARED / "models" / "tinystories-656k"
GOLDEN = [
    313, 598, 303, 1049, 1468, 267, 628, 333, 94, 1210, 263, 251, 604, 94, 1030, 94, 1030, 94, 436,
    220, 1053, 615, 303, 328, 552, 319, 1269, 163, 1945, 897,
]  # fmt: skip

Ask = Callable[..., list[Sample]]


def by_transformers(
    model: PreTrainedModel, ids: tuple[int, ...], **settings: Any
) -> tuple[int, ...]:
    """What `generate` writes after one prompt that stands alone."""
    row = torch.tensor([ids])
    made = model.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=0, **settings
    )
    return tuple(made[0, len(ids) :].tolist())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("size", [1, 16])
def test_greedy_text_is_that_of_transformers_token_for_token(
    architecture: str, size: int, tiny: Callable[..., PreTrainedModel], ask: Ask
) -> None:
    model = tiny(architecture)
    for sample in ask(model, do_sample=False, max_new_tokens=12, micro_batch_size=size):
        assert sample.tokens == by_transformers(model, sample.prompt.ids, max_new_tokens=12)


UNUSUAL: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma3_text": {"num_key_value_heads": 2, "sliding_window": 8},
    "llama4_text": {"num_key_value_heads": 2, "num_local_experts": 2, "attention_chunk_size": 8},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 2},
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": 8},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "qwen3_moe": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "bloom": {},
    "falcon": {},
    "opt": {"word_embed_proj_dim": 64},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4},
}


@pytest.mark.parametrize("architecture", UNUSUAL)
def test_windows_chunks_experts_and_states_come_out_as_in_transformers(
    architecture: str, bpe: PreTrainedTokenizerFast, ask: Ask
) -> None:
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        architecture, vocab_size=len(bpe), hidden_size=64, num_attention_heads=4,
        num_hidden_layers=2, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        **UNUSUAL[architecture],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape).eval()
    for sample in ask(model, TEXTS[:6], do_sample=False, max_new_tokens=14, micro_batch_size=4):
        assert sample.tokens == by_transformers(model, sample.prompt.ids, max_new_tokens=14)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
    ],
)
def test_rules_of_history_are_those_of_transformers(
    settings: dict[str, Any], llama: PreTrainedModel, ask: Ask
) -> None:
    for sample in ask(llama, do_sample=False, max_new_tokens=16, micro_batch_size=7, **settings):
        expected = by_transformers(llama, sample.prompt.ids, max_new_tokens=16, **settings)
        assert sample.tokens == expected


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared test data is not here")
@pytest.mark.parametrize("size", [1, 16])
def test_greedy_stories_equal_the_golden_ids_alone_and_in_a_batch(size: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    settings = GenerationConfig(do_sample=False, max_new_tokens=30, micro_batch_size=size)
    texts = ["Once upon a time", *TEXTS[:15]]
    asked = prompts.encode_prompts(
        [PromptRequest(t, "") for t in texts], tokenizer, model.config, settings, 0
    )
    engine = Engine(model, tokenizer, size)
    samples = list(generate.generate_samples(engine, asked, engine.sampler(settings)))
    assert list(samples[0].tokens) == GOLDEN
    for sample in samples:
        assert sample.tokens == by_transformers(model, sample.prompt.ids, max_new_tokens=30)


SETTINGS = [
    {},
    {"temperature": 1.3, "top_k": 0, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "no_repeat_ngram_size": 3},
    {"num_return_sequences": 5, "stop": ("a",)},
    {"choices": ("yes", "yes, sir", "no")},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_batch_size_changes_no_text(
    settings: dict[str, Any], llama: PreTrainedModel, ask: Ask
) -> None:
    made = [
        [(s.prompt.text, s.index, s.text, s.tokens) for s in samples]
        for samples in (
            ask(llama, max_new_tokens=12, micro_batch_size=size, **settings) for size in (1, 3, 16)
        )
    ]
    assert made[0] == made[1] == made[2]
    order = [(sample[0], sample[1]) for sample in made[0]]
    count = settings.get("num_return_sequences", 1)
    assert order == [(text, index) for text in TEXTS for index in range(count)]


def test_the_order_of_prompts_changes_no_text(llama: PreTrainedModel, ask: Ask) -> None:
    there = ask(llama, max_new_tokens=12, micro_batch_size=4)
    back = ask(llama, TEXTS[::-1], max_new_tokens=12, micro_batch_size=4)
    assert [s.tokens for s in there] == [s.tokens for s in reversed(back)]


def test_the_same_prompt_twice_gives_two_texts_and_seeds_differ(
    llama: PreTrainedModel, ask: Ask
) -> None:
    first, second = ask(llama, ["Once", "Once"], max_new_tokens=12, top_k=0)
    assert first.tokens != second.tokens
    assert ask(llama, ["Once"], max_new_tokens=12, top_k=0)[0].tokens == first.tokens
    assert ask(llama, ["Once"], seed=1, max_new_tokens=12, top_k=0)[0].tokens != first.tokens


def test_a_prompt_is_computed_once_for_all_its_samples(
    llama: PreTrainedModel, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    forward = llama.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(llama, "forward", spy)
    settings = {"num_return_sequences": 9, "micro_batch_size": 4, "max_new_tokens": 6}
    assert len(ask(llama, [TEXTS[1]], **settings)) == 9
    assert [width for width in widths if width > 1] == [widths[0]]


def test_finished_texts_make_place_for_those_that_wait(
    llama: PreTrainedModel, bpe: PreTrainedTokenizerFast
) -> None:
    settings = GenerationConfig(min_new_tokens=3, max_new_tokens=30)
    requests = [
        PromptRequest(text, "", max_new_tokens=3 + 5 * (n % 5)) for n, text in enumerate(TEXTS)
    ]
    asked = prompts.encode_prompts(requests, bpe, llama.config, settings, 0)
    engine = Engine(llama, bpe, 4)
    sampler = engine.sampler(settings)
    alone = {
        s.prompt: s.tokens for p in asked for s in generate.generate_samples(engine, [p], sampler)
    }
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1

    samples = generate.generate_samples(engine, asked, sampler, tick=count)
    together = {s.prompt: s.tokens for s in samples}
    assert together == alone
    longest_batches = sum(
        max(r.max_new_tokens or 0 for r in requests[i : i + 4]) for i in (0, 4, 8, 12)
    )
    assert ticks < longest_batches


def test_memory_bounds_how_many_texts_are_written_at_once(
    llama: PreTrainedModel, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [s.tokens for s in ask(llama, max_new_tokens=6, micro_batch_size=16)]
    monkeypatch.setattr(batching, "CACHE_BYTES", 1)
    assert [s.tokens for s in ask(llama, max_new_tokens=6, micro_batch_size=16)] == expected


def test_a_text_ends_where_the_model_sees_no_further(llama: PreTrainedModel, ask: Ask) -> None:
    (sample,) = ask(llama, ["a " * 45], max_new_tokens=90, min_new_tokens=90)
    assert sample.finish_reason == "context"
    assert len(sample.prompt.ids) + len(sample.tokens) == 96


def test_the_log_probability_is_the_model_s_own(llama: PreTrainedModel, ask: Ask) -> None:
    for sample in ask(llama, max_new_tokens=8, temperature=0.5, repetition_penalty=1.4):
        row = torch.tensor([[*sample.prompt.ids, *sample.tokens]])
        with torch.no_grad():
            logprobs = llama(row).logits[0, :-1].double().log_softmax(-1)
        own = logprobs[len(sample.prompt.ids) - 1 :].gather(1, torch.tensor(sample.tokens)[:, None])
        assert sample.logprob == pytest.approx(float(own.sum()), abs=1e-3)


def test_explanations_hold_the_likeliest_tokens_with_their_probabilities(
    llama: PreTrainedModel, ask: Ask
) -> None:
    (sample,) = ask(llama, ["Once"], max_new_tokens=4, top_k=2, temperature=1.0, explain=3)
    ids = list(sample.prompt.ids)
    for token, step in zip(sample.tokens, sample.steps, strict=True):
        with torch.no_grad():
            expected = llama(torch.tensor([ids])).logits[0, -1].softmax(-1)
        top = expected.topk(3)
        assert [c.id for c in step.likeliest] == top.indices.tolist()
        for candidate, probability in zip(step.likeliest, top.values.tolist(), strict=True):
            assert candidate.probability == pytest.approx(probability, abs=1e-5)
        kept = [c.after_settings for c in step.likeliest]
        assert kept[2] == 0
        assert sum(kept) == pytest.approx(1, abs=1e-5)
        assert step.chosen.id == token
        ids.append(token)


def test_non_finite_weights_are_reported(tiny: Callable[..., PreTrainedModel], ask: Ask) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinite"):
        ask(model, ["Once"])


def test_streamed_text_is_the_text(llama: PreTrainedModel, bpe: PreTrainedTokenizerFast) -> None:
    settings = GenerationConfig(max_new_tokens=40, temperature=1.5, top_k=0, stop=("zq", "e"))
    engine = Engine(llama, bpe, 5)
    streams: dict[Sequence, str] = defaultdict(str)

    def add(sequence: Sequence, text: str) -> None:
        streams[sequence] += text

    asked = encoded(TEXTS, llama, bpe, settings)
    samples = list(generate.generate_samples(engine, asked, engine.sampler(settings), on_text=add))
    streamed = {sequence.prompt: text for sequence, text in streams.items()}
    assert {sample.prompt: sample.text for sample in samples if sample.text} == streamed


def test_pretraining_samples_leave_mode_and_random_state_alone(
    tiny: Callable[..., PreTrainedModel], bpe: PreTrainedTokenizerFast
) -> None:
    model = tiny().train()
    before = torch.get_rng_state()
    settings = GenerationConfig(num_return_sequences=2, max_new_tokens=5)
    prompts = [list(range(1, 120)), list(range(5, 9))]
    texts = generate.continuations(model, bpe, prompts, settings, seed=0)
    assert [len(each) for each in texts] == [2, 2]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
