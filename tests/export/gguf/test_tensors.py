"""The tensors of a file are the model: computed again with NumPy from the file alone, and read by
transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.export.gguf.architectures import ARCHITECTURES, frequency_factors
from llmkit.export.gguf.tensors import gguf_tensors

from .conftest import MakeModel, write

Array = NDArray[Any]


class FromFile:
    """A Llama as llama.cpp computes it, from the tensors and keys of a file."""

    def __init__(self, path: Path) -> None:
        self.reader = GGUFReader(path)
        self.tensors = {
            each.name: gguf.quants.dequantize(each.data, each.tensor_type).astype(np.float64)
            for each in self.reader.tensors
        }

    def key(self, name: str) -> Any:
        field = self.reader.get_field(name)
        return None if field is None else field.contents()

    def norm(self, x: Array, name: str) -> Array:
        epsilon = self.key("llama.attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * self.tensors[name]

    def linear(self, x: Array, name: str) -> Array:
        bias = self.tensors.get(f"{name}.bias", np.zeros(1))
        return np.asarray(x @ self.tensors[f"{name}.weight"].T + bias)

    def turned(self, x: Array) -> Array:
        """[heads, tokens, channels] with each two neighbouring channels rotated."""
        size = x.shape[-1]
        powers = np.arange(0, size, 2) / size
        factors = self.tensors.get("rope_freqs.weight", np.ones(size // 2))
        angles = np.arange(x.shape[1])[:, None] * self.key("llama.rope.freq_base") ** -powers
        angles = angles / factors
        first, second = x[..., 0::2], x[..., 1::2]
        made = np.empty_like(x)
        made[..., 0::2] = first * np.cos(angles) - second * np.sin(angles)
        made[..., 1::2] = first * np.sin(angles) + second * np.cos(angles)
        return made

    def attention(self, x: Array, layer: int) -> Array:
        heads, shared = (self.key(f"llama.attention.head_count{end}") for end in ("", "_kv"))
        size = self.key("llama.attention.key_length")
        split = [
            self.linear(x, f"blk.{layer}.attn_{name}").reshape(len(x), -1, size).swapaxes(0, 1)
            for name in "qkv"
        ]
        query, key = self.turned(split[0]), self.turned(split[1]).repeat(heads // shared, 0)
        scores = query @ key.swapaxes(1, 2) / np.sqrt(size)
        scores += np.triu(np.full((len(x), len(x)), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found = (weights @ split[2].repeat(heads // shared, 0)).swapaxes(0, 1).reshape(len(x), -1)
        return self.linear(found, f"blk.{layer}.attn_output")

    def logits(self, ids: list[int]) -> Array:
        x = self.tensors["token_embd.weight"][ids]
        for layer in range(self.key("llama.block_count")):
            x = x + self.attention(self.norm(x, f"blk.{layer}.attn_norm.weight"), layer)
            inner = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            gate = self.linear(inner, f"blk.{layer}.ffn_gate")
            gate = gate / (1 + np.exp(-gate)) * self.linear(inner, f"blk.{layer}.ffn_up")
            x = x + self.linear(gate, f"blk.{layer}.ffn_down")
        output = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return np.asarray(self.norm(x, "output_norm.weight") @ output.T)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
IDS = list(range(3, 600, 13))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32, "attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("mistral", {"sliding_window": None}),
        ("transformer", {"tie_word_embeddings": False}),
    ],
)
def test_the_file_alone_gives_the_logits_of_the_model(
    kind: str, settings: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    directory, file = make_model(kind, **settings), tmp_path / "model.gguf"
    write(directory, file, "f32")
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].double().numpy()
    assert np.abs(FromFile(file).logits(IDS) - expected).max() < 1e-3
    assert expected.std() > 0.5


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_transformers_reads_the_model_back(
    kind: str, make_model: MakeModel, tmp_path: Path
) -> None:
    directory = make_model(kind)
    write(directory, tmp_path / "model.gguf", "f32")
    ids = torch.tensor([IDS])
    own = AutoModelForCausalLM.from_pretrained(directory).eval()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    with torch.no_grad():
        assert torch.equal(own(input_ids=ids).logits, read(input_ids=ids).logits)


def test_experts_are_split_into_their_three_matrices(make_model: MakeModel, tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    directory = make_model("qwen3_moe", norm_topk_prob=True, **sizes)
    write(directory, tmp_path / "model.gguf", "f32")
    found = {each.name: each.data for each in GGUFReader(tmp_path / "model.gguf").tensors}
    state = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    for layer in range(2):
        both = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"].numpy()
        down = state[f"model.layers.{layer}.mlp.experts.down_proj"].numpy()
        assert np.array_equal(found[f"blk.{layer}.ffn_gate_exps.weight"], both[:, :32])
        assert np.array_equal(found[f"blk.{layer}.ffn_up_exps.weight"], both[:, 32:])
        assert np.array_equal(found[f"blk.{layer}.ffn_down_exps.weight"], down)


@pytest.mark.parametrize(("tied", "kind", "has_output"), [
    (True, "llama", False), (False, "llama", True), (True, "olmo2", True),
])  # fmt: skip
def test_a_tied_output_layer_is_written_only_where_llama_cpp_needs_it(
    tied: bool, kind: str, has_output: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    write(make_model(kind, tie_word_embeddings=tied), tmp_path / "model.gguf", "f32")
    names = {each.name for each in GGUFReader(tmp_path / "model.gguf").tensors}
    assert ("output.weight" in names) == has_output


def test_q8_0_leaves_vectors_in_fp32_and_rows_that_it_cannot_divide_in_fp16(
    make_model: MakeModel, tmp_path: Path
) -> None:
    write(make_model("llama", intermediate_size=90), tmp_path / "model.gguf", "q8_0")
    kinds = {
        each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(("type", "fits"), [("f16", False), ("bf16", True), ("q8_0", True)])
def test_weights_beyond_the_range_of_fp16_are_refused(
    type: Any, fits: bool, make_model: MakeModel
) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model("llama"))
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 7] = 1e5
    (tensor,) = (
        each for each in gguf_tensors(model, ARCHITECTURES["llama"], type)
        if each.name == "token_embd.weight"
    )  # fmt: skip
    if fits:
        tensor.encoded()
        return
    with pytest.raises(ConfigError, match="holds values beyond the range of fp16"):
        tensor.encoded()


def test_frequency_factors_are_those_that_transformers_divides_by(make_model: MakeModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", rope_parameters=LLAMA3))
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = frequency_factors(model.config)
    assert factors is not None
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq)
    assert factors.min() == pytest.approx(1.0)
    assert factors.max() == pytest.approx(8.0)
