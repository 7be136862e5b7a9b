"""llama.cpp reads what was exported as transformers reads the model: ids, logits, greedy text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.errors import LlmkitError
from llmkit.export.gguf import llama_cpp as reader
from llmkit.export.gguf import writing
from llmkit.export.gguf.architectures import ARCHITECTURES
from llmkit.export.source import ExportSource
from llmkit.export.texts import probe_texts
from llmkit.models import pretrained
from llmkit.models.experts import merge
from llmkit.models.experts.saving import save_merged
from llmkit.models.experts.twins import is_feed_forward
from tests.models.experts.families import sources

from .conftest import MakeModel, silent, trained, wrapped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not reader.is_installed(), reason="needs llama-cpp-python"),
]

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rms_norm_eps": 1e-3}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama with wide heads": ("llama", {"head_dim": 32}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama with linear positions": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "transformer": ("transformer", {}),
    "granite": ("granite", MULTIPLIERS),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 with linear positions": ("qwen3", {"rope_parameters": LINEAR}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "olmo2": ("olmo2", {}),
    "olmo2 with tied embeddings": ("olmo2", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "gpt2 with its own output layer": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
}


def exported(directory: Path, file: Path, type: Any = "f32") -> dict[str, Any]:
    """The figures of a model that is written and read by llama.cpp."""
    source = ExportSource(pretrained.open_model(str(directory)))
    plan, model = writing.plan_gguf(source, type), source.load(silent, print)
    writing.write_gguf(file, plan.metadata, plan.tensors(model), lambda amount: None)
    texts = probe_texts(source.tokenizer)
    return reader.check_in_llama_cpp(file, plan, model, source.tokenizer, texts)


def test_every_architecture_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_ids_and_logits_are_those_of_transformers(
    case: str, make_model: MakeModel, tmp_path: Path
) -> None:
    kind, settings = CASES[case]
    found = exported(make_model(kind, **settings), tmp_path / "model.gguf")
    print(case, found)
    assert found["texts"] == 100
    assert found["largest_difference"] < (1e-2 if kind == "gpt2" else 1e-3)
    assert found["same_most_likely_token"] == 1.0
    assert found["perplexity_of_file"] == pytest.approx(found["perplexity"], rel=1e-4)
    check_greedy(tmp_path / kind, tmp_path / "model.gguf")


@pytest.mark.parametrize(("kind", "routed"), [("qwen3", "qwen3_moe"), ("llama", "mixtral")])
def test_a_merge_of_three_experts_is_read(
    kind: str, routed: str, make_model: MakeModel, tmp_path: Path
) -> None:
    models = []
    for number in range(3):
        place = make_model(kind).rename(tmp_path / str(number))
        model = AutoModelForCausalLM.from_pretrained(place)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if is_feed_forward(name):
                    weight.mul_(1 + number)
        models.append(model)
    save_merged(merge.mixture(sources(models), "average", "fit", 2, 0), tmp_path / routed)
    AutoTokenizer.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / routed)
    found = exported(tmp_path / routed, tmp_path / "model.gguf")
    print(routed, found)
    assert found["largest_difference"] < 1e-3
    assert found["same_most_likely_token"] == 1.0
    assert found["perplexity_of_file"] == pytest.approx(found["perplexity"], rel=1e-4)
    check_greedy(tmp_path / routed, tmp_path / "model.gguf")


def check_greedy(directory: Path, file: Path) -> None:
    """48 greedy tokens are equal."""
    import llama_cpp

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = AutoTokenizer.from_pretrained(directory)("def f(x): return")["input_ids"]
    settings = {"max_new_tokens": 48, "do_sample": False, "eos_token_id": None}
    made = model.generate(torch.tensor([ids]), **settings)[0].tolist()
    llama = llama_cpp.Llama(
        str(file), n_ctx=96, type_k=0, type_v=0, flash_attn=False, verbose=False, n_threads=1
    )
    stream = llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
    assert [next(stream) for _ in range(48)] == made[len(ids) :]


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_a_rounded_file_has_nearly_the_same_perplexity(
    type: str, make_model: MakeModel, tmp_path: Path
) -> None:
    found = exported(make_model("llama"), tmp_path / "model.gguf", type)
    assert found["perplexity_of_file"] == pytest.approx(found["perplexity"], rel=0.02)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_rule_that_splits_text_is_that_of_its_name(
    pre: str, make_model: MakeModel, tmp_path: Path
) -> None:
    import llama_cpp

    tokenizer = wrapped(trained(pre, ignore_merges=pre == "llama-bpe"))
    exported(make_model("llama", tokenizer), tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    chance = random.Random(1)
    alphabet = (
        "aB1st ' \t\n\r.,!?-_()/\\\u00e9\u0301\u4f60\u3042\ud55c\u0628\u0939\u094d\u00a0\u3000"
    )
    for _ in range(600):
        text = "".join(chance.choices(alphabet, k=chance.randint(1, 40)))
        read = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert read == tokenizer(text)["input_ids"], repr(text)


def test_a_wrong_name_of_the_rule_is_found_out(make_model: MakeModel, tmp_path: Path) -> None:
    source = ExportSource(pretrained.open_model(str(make_model("llama"))))
    plan, model = writing.plan_gguf(source, "f32"), source.load(silent, print)
    plan.metadata["tokenizer.ggml.pre"] = "llama-bpe"
    file = tmp_path / "model.gguf"
    writing.write_gguf(file, plan.metadata, plan.tensors(model), lambda amount: None)
    with pytest.raises(LlmkitError, match="tokens that llama"):
        reader.check_in_llama_cpp(
            file, plan, model, source.tokenizer, probe_texts(source.tokenizer)
        )
