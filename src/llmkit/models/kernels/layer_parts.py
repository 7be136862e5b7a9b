"""The parts of decoder layers, by family of architectures, as `decoding` computes them.

A family names its modules and what it does between them. A mistake here makes nothing wrong: the
engine compares the logits with the model's own before it uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit.models import rope
from llmkit.models.kernels.int8 import Int8Linear

RotationTable = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Cosines and sines [positions, rotated channels] of positions."""


class UnfitModel(Exception):
    """The model does something that `decoding` does not."""


class Weight(NamedTuple):
    """The weight [outputs, inputs] of a linear layer, with a scale and a bias for each output."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerParts:
    """A decoder layer: its norms and weights by their names in `native`, and its settings."""

    norms: dict[str, nn.Module | None]
    weights: dict[str, Weight | None]
    activation: Callable[[Tensor], Tensor]
    heads: int
    key_heads: int
    scale: float
    softcap: float = 0.0
    window: int = 0
    residual_multiplier: float = 1.0
    rotation: RotationTable | None = None


@dataclass(frozen=True)
class DecoderParts:
    """A decoder: embeddings of ids at positions, layers, the last norm, and the head."""

    embed: Callable[[Tensor, Tensor], Tensor]
    layers: list[LayerParts]
    last_norm: nn.Module
    head: Weight
    norm_offset: float = 0.0
    """Added to the weights of all norms."""
    finish: Callable[[Tensor], Tensor] = field(default=lambda logits: logits)
    """What happens to the logits."""


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """The parts of a causal model; raises UnfitModel for one of no family here."""
    config = model.config
    family = _FAMILIES.get(config.model_type)
    if family is None or rope.depends_on_length(model) or model.device.type != "cpu":
        raise UnfitModel
    try:
        return family(model)
    except (AttributeError, TypeError) as fault:  # another shape of a known family
        raise UnfitModel from fault


def weight_of(module: nn.Module) -> Weight:
    """The weight of a linear layer; raises UnfitModel for other modules, such as adapters."""
    if isinstance(module, Int8Linear):
        return Weight(module.weight, module.scale, module.bias)
    if isinstance(module, Conv1D):  # stored transposed
        return Weight(module.weight.data.T.contiguous(), None, module.bias.data)
    # Tensor parallelism replaces the forward of modules.
    forward = getattr(module.forward, "__func__", None)
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        bias = None if module.bias is None else module.bias.data
        return Weight(module.weight.data.contiguous(), None, bias)
    raise UnfitModel


def store_by_output(model: PreTrainedModel) -> PreTrainedModel:
    """Stores the weights of GPT-2's linear layers so that `weight_of` needs no copy of them."""
    for module in model.modules():
        if isinstance(module, Conv1D):
            module.weight.data = module.weight.data.T.contiguous().T
    return model


def _llama(model: PreTrainedModel) -> DecoderParts:
    config, body = model.config, model.base_model
    kinds = getattr(config, "layer_types", None) or [None] * len(body.layers)
    by_kind = config.model_type.startswith("gemma3")
    rotations = {kind: _rotation(body, {"layer_type": kind} if by_kind else {}) for kind in kinds}
    is_gemma = config.model_type.startswith("gemma")
    embedding, multiplier = model.get_input_embeddings(), getattr(config, "embedding_multiplier", 1)
    return DecoderParts(
        embed=lambda ids, positions: (
            embedding(ids) if multiplier == 1 else embedding(ids) * multiplier
        ),
        layers=[
            _llama_layer(config, layer, kind, rotations[kind])
            for layer, kind in zip(body.layers, kinds, strict=True)
        ],
        last_norm=body.norm,
        head=weight_of(model.get_output_embeddings()),
        norm_offset=1.0 if is_gemma else 0.0,
        finish=_finish(config),
    )


def _rotation(body: Any, kind: dict[str, str | None]) -> RotationTable:
    def rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines = body.rotary_emb(torch.zeros(1, 1, 1), positions[None], **kind)
        return cosines[0], sines[0]

    return rotation


def _llama_layer(config: Any, layer: Any, kind: str | None, rotation: RotationTable) -> LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    is_windowed = kind == "sliding_attention" or config.model_type == "mistral"
    norms = {
        "before_attention": getattr(layer, "input_layernorm", None),
        "query_norm": getattr(attention, "q_norm", None),
        "key_norm": getattr(attention, "k_norm", None),
    }
    if hasattr(layer, "post_feedforward_layernorm"):  # OLMo 2; Gemma 2 and 3 normalise before too
        norms["after_attention"] = layer.post_attention_layernorm
        norms["before_mlp"] = getattr(layer, "pre_feedforward_layernorm", None)
        norms["after_mlp"] = layer.post_feedforward_layernorm
    else:
        norms["before_mlp"] = layer.post_attention_layernorm
    modules = {
        "query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj,
        "output": attention.o_proj,
        "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj,
    }  # fmt: skip

    return LayerParts(
        norms=norms,
        weights={name: weight_of(module) for name, module in modules.items()},
        activation=mlp.act_fn,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        scale=attention.scaling,
        softcap=getattr(attention, "attn_logit_softcapping", None) or 0.0,
        window=(config.sliding_window or 0) if is_windowed else 0,
        residual_multiplier=getattr(config, "residual_multiplier", 1.0),
        rotation=rotation,
    )


def _finish(config: Any) -> Callable[[Tensor], Tensor]:
    divisor = getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        if divisor != 1.0:
            logits = logits / divisor
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finish


def _gpt2(model: PreTrainedModel) -> DecoderParts:
    body = model.base_model
    return DecoderParts(
        embed=lambda ids, positions: body.wte(ids) + body.wpe(positions),
        layers=[_gpt2_layer(model.config, layer) for layer in body.h],
        last_norm=body.ln_f,
        head=weight_of(model.get_output_embeddings()),
    )


def _gpt2_layer(config: Any, layer: Any) -> LayerParts:
    if config.add_cross_attention:
        raise UnfitModel
    whole = weight_of(layer.attn.c_attn)
    thirds = [
        Weight(*(None if part is None else part.chunk(3)[third] for part in whole))  # type: ignore[arg-type]
        for third in range(3)
    ]
    return LayerParts(
        norms={"before_attention": layer.ln_1, "before_mlp": layer.ln_2},
        weights={
            "query": thirds[0], "key": thirds[1], "value": thirds[2],
            "output": weight_of(layer.attn.c_proj),
            "up": weight_of(layer.mlp.c_fc), "down": weight_of(layer.mlp.c_proj),
        },
        activation=layer.mlp.act,
        heads=config.num_attention_heads,
        key_heads=config.num_attention_heads,
        scale=layer.attn.scaling,
    )  # fmt: skip


def _transformer(model: PreTrainedModel) -> DecoderParts:
    """llmkit's own architecture."""
    config, body = model.config, model.base_model
    if config.norm_position != "before" or not config.is_causal:
        raise UnfitModel

    def rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
        _, angles = body._add_positions(torch.zeros(1, 1, 1), positions[None])
        cosines, sines = (torch.cat([half, half], -1)[0, 0] for half in angles)
        return cosines, sines

    return DecoderParts(
        embed=lambda ids, positions: body._add_positions(body.embed_tokens(ids), positions)[0],
        layers=[_transformer_layer(config, layer, rotation) for layer in body.layers],
        last_norm=body.norm,
        head=weight_of(model.get_output_embeddings()),
    )


def _transformer_layer(config: Any, layer: Any, rotation: RotationTable) -> LayerParts:
    attention, mlp = layer.attention, layer.feed_forward
    gate = {} if mlp.gate is None else {"gate": mlp.gate}
    modules = {
        "query": attention.query, "key": attention.key, "value": attention.value,
        "output": attention.output, "up": mlp.inner, "down": mlp.output, **gate,
    }  # fmt: skip

    return LayerParts(
        norms={"before_attention": layer.attention_norm, "before_mlp": layer.feed_forward_norm},
        weights={name: weight_of(module) for name, module in modules.items()},
        activation=mlp.activation,
        heads=config.num_attention_heads,
        key_heads=config.num_attention_heads // attention.groups,
        scale=attention.head_size**-0.5,
        rotation=rotation if config.position_embedding == "rotary" else None,
    )


_LIKE_LLAMA = (
    "llama", "mistral", "qwen2", "qwen3", "olmo2", "granite", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip
_FAMILIES: dict[str, Callable[[PreTrainedModel], DecoderParts]] = {
    **dict.fromkeys(_LIKE_LLAMA, _llama),
    "gpt2": _gpt2,
    "transformer": _transformer,
}
