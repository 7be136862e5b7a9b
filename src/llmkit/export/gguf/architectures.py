"""The model types that llama.cpp computes as transformers does, and what it must know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from gguf import Keys
from transformers import PretrainedConfig

from llmkit.errors import ConfigError

Metadata = dict[str, Any]
"""Keys of a GGUF file with their values: text, bool, int, float, or lists of one of them."""

_SILU, _GELU = ("silu", "swish"), ("gelu_new", "gelu_pytorch_tanh")
_NO_BIAS = {"attention_bias": (False,)}


@dataclass(frozen=True)
class LlamaArchitecture:
    """How llama.cpp computes a model type."""

    name: str
    """Its name in llama.cpp."""
    needs: Mapping[str, tuple[Any, ...]]
    """Settings, and the values of them that llama.cpp computes; a missing setting is right."""
    rotates_neighbours: bool = False
    """Whether rotary positions turn neighbouring channels, where transformers turns halves."""
    has_frequencies: bool = False
    """Whether it takes a factor for each rotary frequency, as Llama 3 needs."""
    ties: bool = True
    """Whether the output layer may be the embedding."""
    transposed: tuple[str, ...] = ()
    """Ends of names of matrices that transformers keeps transposed."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of names that differ from those of transformers' Llama."""
    settings: Callable[[PretrainedConfig, str], Metadata] = lambda config, name: {}
    """Keys of this architecture alone."""
    tolerance: float = 1e-3
    """Largest difference of logits in fp32."""


def _granite(config: PretrainedConfig, name: str) -> Metadata:
    return {
        Keys.LLM.LOGIT_SCALE.format(arch=name): float(config.logits_scaling),
        Keys.LLM.RESIDUAL_SCALE.format(arch=name): float(config.residual_multiplier),
        Keys.LLM.EMBEDDING_SCALE.format(arch=name): float(config.embedding_multiplier),
        Keys.Attention.SCALE.format(arch=name): float(config.attention_multiplier),
    }


_LLAMA = {"hidden_act": _SILU}
_OWN = {
    "hidden_act": _SILU,
    "position_embedding": ("rotary",),
    "norm_type": ("rms_norm",),
    "norm_position": ("before",),
    "gated_feed_forward": (True,),
    "bias": (False,),
    "is_causal": (True,),
}
_OWN_NAMES = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.inner": "mlp.up_proj",
    "feed_forward.output": "mlp.down_proj",
}
_GPT2 = {
    "activation_function": _GELU,
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

_turned = partial(LlamaArchitecture, rotates_neighbours=True, has_frequencies=True)
ARCHITECTURES: Mapping[str, LlamaArchitecture] = {
    "llama": _turned("llama", _LLAMA),
    "mistral": _turned("llama", _LLAMA),
    "mixtral": _turned("llama", _LLAMA),
    "transformer": _turned("llama", _OWN, renamed=_OWN_NAMES),
    "granite": _turned("granite", _LLAMA | _NO_BIAS, settings=_granite),
    "qwen2": LlamaArchitecture("qwen2", _LLAMA),
    "qwen3": LlamaArchitecture("qwen3", _LLAMA | _NO_BIAS),
    "qwen3_moe": LlamaArchitecture(
        "qwen3moe",
        _LLAMA | _NO_BIAS | {
            "norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None),
        },
    ),
    "olmo2": LlamaArchitecture("olmo2", _LLAMA | _NO_BIAS, ties=False),
    "gpt2": LlamaArchitecture("gpt2", _GPT2, transposed=_TRANSPOSED, tolerance=1e-2),
}  # fmt: skip
"""Each was compared with llama.cpp; `tests/export/gguf/test_llama_cpp.py` repeats it."""


def architecture_of(config: PretrainedConfig, name: str) -> LlamaArchitecture:
    """How llama.cpp computes a model of this config.

    Raises ConfigError for a model type that is not in the table, and for settings with which
    llama.cpp would compute something else.
    """
    found = ARCHITECTURES.get(str(config.model_type))
    if found is None:
        raise ConfigError(
            f"a {config.model_type} model has not been verified in llama.cpp",
            where=f"{name} (model.name_or_path)",
            next=f"models of type {', '.join(ARCHITECTURES)} can be exported to GGUF; "
            "`--format onnx` and `--format safetensors` take more",
        )
    for fault in _faults(config, found):
        raise ConfigError(
            f"llama.cpp computes no {config.model_type} model with {fault}",
            where=f"{name} (config.json)",
            next="use `--format onnx` or `--format safetensors`, which keep every setting",
        )
    return found


def _faults(config: PretrainedConfig, architecture: LlamaArchitecture) -> list[str]:
    """The settings of a model that llama.cpp would ignore."""
    faults = []
    for setting, wanted in architecture.needs.items():
        value = getattr(config, setting, wanted[0])
        if value not in wanted:
            faults.append(f"{setting}={value}")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    has_windows = layers != {"full_attention"} or (
        config.model_type in ("mistral", "mixtral") and window is not None
    )
    if has_windows and (window is None or window < config.max_position_embeddings):
        faults.append(f"sliding windows ({window} tokens)")
    if getattr(config, "partial_rotary_factor", None) not in (None, 1.0):
        faults.append("rotary positions of a part of the channels")
    kind = rope_of(config).get("rope_type", "default")
    scaled = ("default", "linear", *(["llama3"] if architecture.has_frequencies else []))
    if kind not in scaled:
        faults.append(f"rotary positions of type {kind}")
    fixed_heads = architecture.name in ("qwen2", "olmo2")
    if fixed_heads and config.hidden_size != _head_size(config) * config.num_attention_heads:
        faults.append(f"head_dim={_head_size(config)}")
    return faults


def rope_of(config: PretrainedConfig) -> Mapping[str, Any]:
    """The settings of rotary positions; empty for other positions."""
    found = getattr(config, "rope_parameters", None) or {}
    return found if "rope_theta" in found or "rope_type" in found else {}


def _head_size(config: PretrainedConfig) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def hyperparameters(config: PretrainedConfig, architecture: LlamaArchitecture) -> Metadata:
    """What llama.cpp must know to compute the model."""
    name = architecture.name
    heads = int(config.num_attention_heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    found = {
        Keys.LLM.VOCAB_SIZE: int(config.vocab_size),
        Keys.LLM.CONTEXT_LENGTH: int(config.max_position_embeddings),
        Keys.LLM.EMBEDDING_LENGTH: int(config.hidden_size),
        Keys.LLM.BLOCK_COUNT: int(config.num_hidden_layers),
        Keys.LLM.FEED_FORWARD_LENGTH: int(inner or 4 * config.hidden_size),
        Keys.Attention.HEAD_COUNT: heads,
        Keys.Attention.HEAD_COUNT_KV: int(getattr(config, "num_key_value_heads", None) or heads),
        **_norm(config),
        **_experts(config),
        **_positions(config),
    }
    own = architecture.settings(config, name)
    return {key.format(arch=name): value for key, value in found.items()} | own


def _norm(config: PretrainedConfig) -> Metadata:
    if hasattr(config, "layer_norm_epsilon"):
        return {Keys.Attention.LAYERNORM_EPS: float(config.layer_norm_epsilon)}
    epsilon = getattr(config, "rms_norm_eps", None) or config.norm_eps
    return {Keys.Attention.LAYERNORM_RMS_EPS: float(epsilon)}


def _experts(config: PretrainedConfig) -> Metadata:
    # mixtral's name of the number of experts is an alias of the others'
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if count is None:
        return {}
    found = {
        Keys.LLM.EXPERT_COUNT: int(count),
        Keys.LLM.EXPERT_USED_COUNT: int(config.num_experts_per_tok),
    }
    if inner := getattr(config, "moe_intermediate_size", None):
        found[Keys.LLM.EXPERT_FEED_FORWARD_LENGTH] = int(inner)
    return found


def _positions(config: PretrainedConfig) -> Metadata:
    if config.model_type == "gpt2":
        return {}
    rope, size = rope_of(config), _head_size(config)
    base = rope.get("rope_theta") or config.rope_theta
    found: Metadata = {
        Keys.Attention.KEY_LENGTH: size,
        Keys.Attention.VALUE_LENGTH: size,
        Keys.Rope.DIMENSION_COUNT: size,
        Keys.Rope.FREQ_BASE: float(base),
    }
    if rope.get("rope_type") == "linear":
        found |= {Keys.Rope.SCALING_TYPE: "linear", Keys.Rope.SCALING_FACTOR: float(rope["factor"])}
    return found


def frequency_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """The number that each rotary frequency is divided by, as in Llama 3; None if there is none."""
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert scale == 1.0
    powers = torch.arange(0, _head_size(config), 2, dtype=torch.float64) / _head_size(config)
    plain = 1.0 / rope["rope_theta"] ** powers
    factors: torch.Tensor = (plain / frequencies.double()).float()
    return factors
