"""Dense architectures and the mixtures of experts that hold several of their models exactly.

All of them share attention, embeddings and norms; each expert is the feed-forward network of one
dense model. The state of a dense model and that of one expert have the same names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.logits import layers_of

DenseState = Mapping[str, Tensor]
"""The weights of a dense model by name."""

GATE, UP, DOWN = "gate_proj.weight", "up_proj.weight", "down_proj.weight"
"""The matrices of a dense feed-forward network."""
_MLP = "mlp."
_LAYER = re.compile(r"(.*?\.\d+)\.")
_SHARED_EXPERT = "shared_expert"
"""qwen2_moe needs an expert that sees every token; with a `down_proj` of 0 it adds nothing."""


@dataclass(frozen=True)
class Twin:
    """The mixture of experts for one dense architecture."""

    routed: str
    """Its model type."""
    fixed: Mapping[str, Any]
    """Settings that its config needs beside those of the dense model."""
    equal: Mapping[str, Any]
    """Settings of the dense model that the mixture cannot express, with the only possible value."""


_NO_BIAS = {"mlp_bias": False}
_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
TWINS: Mapping[str, Twin] = {
    "qwen3": Twin("qwen3_moe", _EVERY_LAYER, {}),
    "llama": Twin("mixtral", {"sliding_window": None}, {**_NO_BIAS, "attention_bias": False}),
    "mistral": Twin("mixtral", {}, {}),
    "qwen2": Twin("qwen2_moe", {**_EVERY_LAYER, "shared_expert_intermediate_size": 1}, {}),
    "olmo2": Twin("flex_olmo", {"norm_topk_prob": True}, {}),
    "granite": Twin("granitemoe", {}, _NO_BIAS),
}
"""The dense model types that can be merged into a mixture of experts."""


def twin_of(config: PretrainedConfig, name: str) -> Twin:
    """The mixture of experts for a dense config.

    Raises ConfigError if transformers has none, or none with the settings of this model.
    """
    kind = str(config.model_type)
    if kind not in TWINS:
        raise ConfigError(
            f"transformers has no mixture of experts whose experts are {kind} models",
            where=f"{name} (merge.into)",
            next=f"use merge.into=ensemble, or a seed of type {', '.join(TWINS)}",
        )
    twin = TWINS[kind]
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1 and "layer_types" not in build.setting_names(CONFIG_MAPPING[twin.routed]):
        raise ConfigError(
            f"a {twin.routed} model cannot express layers with and without a sliding window",
            where=f"{name} (merge.into)",
            next="use merge.into=ensemble",
        )
    for setting, wanted in twin.equal.items():
        if (found := getattr(config, setting, wanted)) != wanted:
            raise ConfigError(
                f"a {twin.routed} model cannot express {setting}={found} of a {kind} model",
                where=f"{name} (merge.into)",
                next="use merge.into=ensemble",
            )
    return twin


def routed_config(dense: PretrainedConfig, n_experts: int, top_k: int) -> PretrainedConfig:
    """The config of a mixture of `n_experts` models with this dense config.

    The load-balancing loss has coefficient 0: a mixture of domains is balanced by its data.
    """
    twin = TWINS[dense.model_type]
    kind = CONFIG_MAPPING[twin.routed]
    skipped = {"model_type", "architectures", "transformers_version"}
    names = build.setting_names(kind) | {"head_dim"}  # some models read it that do not declare it
    settings = {k: v for k, v in dense.to_dict().items() if k in names and k not in skipped}
    settings |= dict(twin.fixed)
    settings |= {name: n_experts for name in build.EXPERTS if name in names}
    settings |= {build.TOP_K: top_k, "router_aux_loss_coef": 0.0}
    if "moe_intermediate_size" in names:
        settings["moe_intermediate_size"] = dense.intermediate_size
    if (layers := getattr(dense, "layer_types", None)) and "layer_types" not in names:
        settings["use_sliding_window"] = "sliding_attention" in layers
    made: PretrainedConfig = kind(**{k: v for k, v in settings.items() if k in names})
    made.architectures = [build.known_architectures(build.LANGUAGE_MODEL)[twin.routed]]
    return made


def dense_states(model: PreTrainedModel) -> list[DenseState]:
    """The state of each expert as that of a dense model; of a dense model, its own.

    The tensors share the memory of the model.
    """
    state = {name: weight.detach() for name, weight in model.state_dict().items()}
    blocks = expert_blocks(model)
    if not blocks:
        return [state]
    shared = {n: w for n, w in state.items() if not n.startswith(tuple(blocks))}
    count = len(next(iter(blocks.values())).experts.down_proj)
    return [{**shared, **_feed_forward(blocks, expert)} for expert in range(count)]


def _feed_forward(blocks: Mapping[str, Any], expert: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for prefix, block in blocks.items():
        mlp = prefix.rpartition(".")[0] + "." + _MLP
        gate, up = block.experts.gate_up_proj.detach()[expert].chunk(2)
        found |= {mlp + GATE: gate, mlp + UP: up}
        found[mlp + DOWN] = block.experts.down_proj.detach()[expert]
    return found


def expert_blocks(model: PreTrainedModel) -> dict[str, Any]:
    """The blocks of a model that route tokens to experts, by name; empty for a dense model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(getattr(module, "experts", None), "gate_up_proj", None), Tensor)
    }


def router_of(block: Any) -> nn.Module:
    """The router of a block of experts."""
    found: nn.Module = block.gate if hasattr(block, "gate") else block.router
    return found


def embedding_names(model: PreTrainedModel) -> frozenset[str]:
    """The names of the weights with one row for each token: of the input and the output layer."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = [end.weight for end in ends if end is not None]
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, weight in named if any(weight is each for each in rows))


def untied(model: PreTrainedModel, state: DenseState) -> dict[str, Tensor]:
    """The weights of a model that a file holds: tied ones once."""
    ignored = set(model._keys_to_ignore_on_save or ())
    kept = {name: weight for name, weight in state.items() if name not in ignored}
    found: dict[str, Tensor] = remove_tied_weights_from_state_dict(kept, model)
    return found


def layer_name(weight: str) -> str:
    """The layer that a weight belongs to, as in `model.layers.3`; its own name outside the
    layers."""
    found = _LAYER.match(weight)
    return weight if found is None else found[1]


def is_feed_forward(name: str) -> bool:
    """Whether a weight of a dense model belongs to the feed-forward networks."""
    return f".{_MLP}" in name


def freeze_weights(model: PreTrainedModel, part: str) -> None:
    """Freezes a part of a causal model: `none`, the `embeddings` (of input and output), or the
    `trunk`, everything but the feed-forward networks.

    Raises ConfigError for a model whose feed-forward networks are not found.
    """
    rows = embedding_names(model)
    named = dict(model.named_parameters())
    if part == "trunk" and not any(map(is_feed_forward, named)):
        raise ConfigError(
            f"no feed-forward networks are found in a {model.config.model_type} model",
            where="train.freeze",
            next=f"write embeddings, or begin with a model of type {', '.join(TWINS)}",
        )
    for name, weight in named.items():
        kept = {"embeddings": name in rows, "trunk": not is_feed_forward(name)}
        if kept.get(part, False):
            weight.requires_grad_(False)


def feed_forwards(model: PreTrainedModel) -> list[nn.Module]:
    """The feed-forward network of each layer of a dense model; its input is what a router reads."""
    return [layer.get_submodule("mlp") for layer in layers_of(model)]


def outline_of(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config without memory for its weights."""
    with torch.device("meta"):
        return _new_model(config)


def model_of(config: PretrainedConfig, state: DenseState) -> PreTrainedModel:
    """The model of a config with these weights, which it shares."""
    model = _new_model(config)
    missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or {})
    if unexpected or set(missing) - tied:
        raise ValueError(f"weights do not fit {config.model_type}: {missing}, {unexpected}")
    return model


def _new_model(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(), no_init_weights():
        model = build.new_model(config, 0, build.LANGUAGE_MODEL)
    model.tie_weights()
    return model


def routed_block(
    prefix: str, block: nn.Module, experts: Sequence[DenseState], router: Tensor
) -> Iterator[dict[str, Tensor]]:
    """The weights of a block that routes tokens to experts, by name, a matrix of all experts at a
    time.

    `experts` hold the feed-forward network of its layer, and `router` is [experts, hidden size].
    """
    mlp = prefix.rpartition(".")[0] + "." + _MLP
    wide = [each[mlp + name] for each in experts for name in (GATE, UP)]
    joined = torch.cat(wide).view(len(experts), -1, wide[0].shape[1])
    yield {f"{prefix}.experts.gate_up_proj": joined}
    del joined
    yield {f"{prefix}.experts.down_proj": torch.stack([each[mlp + DOWN] for each in experts])}
    yield {f"{prefix}.{_name_of(router_of(block), block)}.weight": router.clone()}
    for name, weight in block.named_parameters():
        if name.startswith(_SHARED_EXPERT):
            yield {f"{prefix}.{name}": torch.zeros(weight.shape)}


def _name_of(module: nn.Module, parent: nn.Module) -> str:
    return next(name for name, child in parent.named_children() if child is module)
