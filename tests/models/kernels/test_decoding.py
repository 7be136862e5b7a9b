"""The compiled decoding step gives the logits of the model, for every architecture that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.config.schema import GenerationConfig
from llmkit.inference.batching import Engine
from llmkit.inference.decoding.kv_cache import KVCache
from llmkit.inference.generated import Sample
from llmkit.models import build
from llmkit.models.kernels import int8, native
from llmkit.models.kernels.decoding import CompiledStep, compiled_step
from tests.inference.conftest import ask, bpe, encoded, tiny  # noqa: F401

pytestmark = pytest.mark.skipif(native.decoder_library() is None, reason="there is no C compiler")

GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
}  # fmt: skip
PLAIN = {
    "position_embedding": "learned", "gated_feed_forward": False, "norm_type": "layer_norm",
    "bias": True, "hidden_act": "gelu",
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-groups-biases": (
        "llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN | {"rope_theta": 10000.0}}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "qwen2-biases": ("qwen2", {}),
    "qwen3-head-size": ("qwen3", {"head_dim": 20}),
    "olmo2-norms-after": ("olmo2", {}),
    "granite-multipliers": ("granite", GRANITE),
    "gemma": ("gemma", {}),
    "gemma2-window-caps": (
        "gemma2",
        {"sliding_window": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3-windows": ("gemma3_text", {"sliding_window": 4}),
    "gpt2": ("gpt2", {}),
    "transformer": ("transformer", {}),
    "transformer-plain": ("transformer", PLAIN),
    "transformer-sinusoids": ("transformer", {"position_embedding": "sinusoidal"}),
}  # fmt: skip
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [27, 18], [1, 6, 1, 8, 0])


@pytest.fixture
def make() -> Callable[[str], PreTrainedModel]:
    """A small model of random weights, none of them zero."""

    def made(name: str) -> PreTrainedModel:
        architecture, settings = MODELS[name]
        shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, **settings}
        special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        model = build.causal_model(
            build.model_config(architecture, shape, 101, 96, special), seed=0
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return made


def step_of(model: PreTrainedModel) -> CompiledStep:
    step = compiled_step(model)
    assert step is not None
    return step


def cached(model: PreTrainedModel, prompts: tuple[list[int], ...] = PROMPTS) -> KVCache:
    """A cache with room, of prompts that end in the same column."""
    whole, longest = KVCache(), max(map(len, prompts))
    for row, ids in enumerate(prompts):
        own = KVCache()
        model(input_ids=torch.tensor([ids]), past_key_values=own, use_cache=True)
        own.starts = torch.tensor([0])
        if not whole.layers:
            whole = own.copy_of(torch.tensor([0]))
        else:
            whole.put(torch.tensor([row]), own, torch.tensor([0]))
    assert whole.length == longest
    whole.make_room(1)
    return whole


def advance(step: CompiledStep, ids: Tensor, cache: KVCache) -> Tensor:
    cache.make_room(1)
    logits = step(ids[:, None], cache.begins(), *cache.buffers(), cache.length)
    cache.extend(1)
    return logits[:, 0]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_logits_are_those_of_the_model_on_each_text_alone(
    name: str, make: Callable[[str], PreTrainedModel]
) -> None:
    model = make(name)
    step, cache, texts = step_of(model), cached(model), [list(ids) for ids in PROMPTS]
    for newest in torch.randint(101, (6, 3), generator=torch.Generator().manual_seed(0)):
        for ids, new in zip(texts, newest.tolist(), strict=True):
            ids.append(new)
        logits = advance(step, newest, cache)
        for ids, found in zip(texts, logits, strict=True):
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("convert", [copy.copy, int8.to_bf16, int8.quantize])
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_company(
    convert: Callable[[PreTrainedModel], PreTrainedModel], make: Callable[[str], PreTrainedModel]
) -> None:
    model = convert(make("llama-groups-biases"))
    step, cache = step_of(model), cached(model, (*PROMPTS, *PROMPTS))
    newest = torch.tensor([1, 2, 3, 4, 5, 6])
    alone = [
        advance(step, newest[row : row + 1], cache.copy_of(torch.tensor([row])))
        for row in range(len(newest))
    ]
    assert torch.equal(advance(step, newest, cache), torch.cat(alone))


@pytest.mark.parametrize("convert", [copy.copy, int8.to_bf16, int8.quantize])
@pytest.mark.parametrize("name", ["llama-groups-biases", "gemma2-window-caps", "gpt2"])
@torch.inference_mode()
def test_tokens_have_the_same_bits_one_by_one_and_in_one_step(
    name: str,
    convert: Callable[[PreTrainedModel], PreTrainedModel],
    make: Callable[[str], PreTrainedModel],
) -> None:
    model = convert(make(name))
    step, cache = step_of(model), cached(model)
    twin, newest = cache.copy_of(torch.arange(3)), torch.arange(15).view(3, 5)
    alone = [advance(step, newest[:, place], cache) for place in range(5)]
    together = step(newest, twin.begins(), *twin.buffers(), twin.length)
    assert torch.equal(together, torch.stack(alone, 1))
    for mine, other in zip(chain(*cache.buffers()), chain(*twin.buffers()), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("convert", [int8.to_bf16, int8.quantize])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.inference_mode()
def test_small_weights_are_computed_at_least_as_exactly_as_in_torch(
    name: str,
    convert: Callable[[PreTrainedModel], PreTrainedModel],
    make: Callable[[str], PreTrainedModel],
) -> None:
    full = make(name)
    model = convert(copy.deepcopy(full))
    cache, newest = cached(model), torch.tensor([1, 2, 3])
    found = advance(step_of(model), newest, cache.copy_of(torch.arange(3)))
    mask = torch.arange(cache.length + 1) >= cache.begins()[:, None]
    positions = (cache.length - cache.begins())[:, None]
    own = model(
        input_ids=newest[:, None], past_key_values=cache, attention_mask=mask, use_cache=True,
        position_ids=positions,
    ).logits[:, -1].float()  # fmt: skip
    exact = torch.stack(
        [full(input_ids=torch.tensor([[*ids, new]])).logits[0, -1]
         for ids, new in zip(PROMPTS, newest.tolist(), strict=True)]
    )  # fmt: skip
    assert (found - own).norm() < 0.02 * own.norm()
    assert (found - exact).norm() < 1.1 * (own - exact).norm()


def test_other_architectures_and_adapters_have_no_compiled_step(
    make: Callable[[str], PreTrainedModel],
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
) -> None:
    assert compiled_step(tiny("gpt_neox")) is None
    model: Any = make("llama")
    linear = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(linear)
    assert compiled_step(model) is None


def test_a_model_that_does_more_than_its_architecture_writes_its_own_texts(
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    ask: Callable[..., list[Sample]],  # noqa: F811
    bpe: Any,  # noqa: F811
) -> None:
    model: Any = tiny("llama")
    plain = ask(model, do_sample=False, max_new_tokens=8)
    model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, output: 30 * output.flip(-1))
    changed = ask(model, do_sample=False, max_new_tokens=8)
    assert [sample.tokens for sample in changed] != [sample.tokens for sample in plain]
    for sample in changed:
        ids = torch.tensor([[*sample.prompt.ids, *sample.tokens]])
        expected = model(input_ids=ids).logits[0, len(sample.prompt.ids) - 1 : -1].argmax(-1)
        assert expected.tolist() == list(sample.tokens)


def test_a_model_is_compared_once_and_then_computed_in_compiled_code(
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    bpe: Any,  # noqa: F811
) -> None:
    model, widths = tiny("llama"), []
    model.register_forward_hook(lambda _, inputs, output: widths.append(output.logits.shape[1]))
    engine = Engine(model, bpe)
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=9)
    (prompt,) = encoded(["Once"], model, bpe, settings)
    engine.add(prompt, engine.sampler(settings))
    while not engine.is_idle:
        engine.step()
    assert len(widths) == 2  # the prompt, and the first step
