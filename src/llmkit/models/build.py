"""A new model of any architecture that transformers knows, with seeded weights."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from llmkit.errors import ConfigError
from llmkit.models import architectures, rope, settings

DEFAULT_HIDDEN_SIZE = 256
DEFAULT_LAYERS = 4
HEAD_SIZE = 64

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = "num_experts_per_tok"
"""Experts of a layer, as architectures call them, and those that a token is routed to."""


@dataclass(frozen=True)
class Purpose:
    """What a model is for, and what follows from that when one is built."""

    name: str
    auto: Any
    """The Auto class of transformers."""
    names: Mapping[str, Any]
    mapping: Mapping[Any, Any]
    """What transformers has for it; see `architectures.known`."""
    common: str
    length_key: str


LANGUAGE_MODEL = Purpose(
    "causal language model",
    AutoModelForCausalLM,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    "llama, gpt2, qwen3, mistral, mixtral, gpt_neox, olmo2, transformer",
    "data.block_size",
)
MASKED_MODEL = Purpose(
    "masked language model",
    AutoModelForMaskedLM,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
    "modernbert, bert, roberta, distilbert, electra, deberta-v2, transformer",
    "data.block_size",
)
CLASSIFIER = Purpose(
    "sequence classifier",
    AutoModelForSequenceClassification,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama",
    "data.max_length",
)


def model_config(
    architecture: str,
    asked: dict[str, Any],
    vocab_size: int,
    length: int,
    special: dict[str, int],
    purpose: Purpose = LANGUAGE_MODEL,
) -> PretrainedConfig:
    """The transformers config of a new model; what `asked` leaves open fits a small model.

    `length` is the most tokens that it reads at once; `special` holds the token ids
    (`bos_token_id`, ...) of the tokenizer, since the defaults are those of the released model.
    Raises ConfigError for an architecture without such a model, an unknown setting (transformers
    would keep it silently) and values that do not fit.
    """
    kind = _config_class(architecture, purpose)
    chosen = {**special, **fill_shape(architecture, asked, purpose)}
    chosen.setdefault("vocab_size", vocab_size)
    if chosen["vocab_size"] < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} tokens, the model only {chosen['vocab_size']}",
            where="model.config.vocab_size",
            next=f"leave it out, or write at least {vocab_size}",
        )
    positions = settings.canonical(kind, asked).get("max_position_embeddings")
    if positions is None:
        chosen["max_position_embeddings"] = length
    made = _made(kind, chosen)
    unused = 0 if purpose is LANGUAGE_MODEL else unused_positions(made, purpose)
    if positions is None:
        wider = {**chosen, "max_position_embeddings": length + unused}
        return _made(kind, wider) if unused else made
    if positions - unused < length:
        raise ConfigError(
            f"{length} tokens are more than the model's {positions - unused} positions",
            where=f"{purpose.length_key}, model.config.max_position_embeddings",
            next=f"write {purpose.length_key}={positions - unused} or more positions",
        )
    return made


def unused_positions(config: PretrainedConfig, purpose: Purpose) -> int:
    """Positions that texts do not get: RoBERTa and its kin count from after the padding id."""
    with torch.device("meta"):
        model = _built(config, purpose)
    for name, module in model.named_modules():
        is_position = isinstance(module, nn.Embedding) and "position" in name
        if is_position and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def causal_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A causal language model with fresh weights."""
    return new_model(config, seed, LANGUAGE_MODEL)


def classifier(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A classifier with fresh weights."""
    return new_model(config, seed, CLASSIFIER)


def new_model(config: PretrainedConfig, seed: int, purpose: Purpose) -> PreTrainedModel:
    """A model with fresh fp32 weights: the same for the same config and seed."""
    torch.manual_seed(seed)
    model = _built(config, purpose, dtype=torch.float32)
    rope.use_document_lengths(model)
    return model.train()


def _built(config: PretrainedConfig, purpose: Purpose, **options: Any) -> PreTrainedModel:
    """The model of a config; raises ConfigError where its values do not go together."""
    try:
        return purpose.auto.from_config(config, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # each model has checks of its own
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        reason = (str(error).strip() or "no reason is given").splitlines()[0][:300]
        raise ConfigError(
            f"no {config.model_type} model can be built of its config: "
            f"{type(error).__name__}: {reason}",
            where="model.config, or config.json of the model",
            next="correct the value that it names",
        ) from error


def _made(kind: type[PretrainedConfig], chosen: dict[str, Any]) -> PretrainedConfig:
    try:
        return kind(**settings.with_floats(kind, chosen))
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"{kind.model_type} refuses these settings: {reason}", where="model.config"
        ) from error


def _config_class(architecture: str, purpose: Purpose) -> type[PretrainedConfig]:
    known = sorted(architectures.known(purpose.names, purpose.mapping))
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"there is no {purpose.name} of type {architecture!r}",
            where="model.architecture",
            next=hint + f"common ones: {purpose.common}",
        )
    kind: type[PretrainedConfig] = CONFIG_MAPPING[architecture]
    return kind


def settings_faults(
    architecture: str, given: dict[str, Any], purposes: Sequence[Purpose]
) -> list[settings.Fault]:
    """What is wrong with the settings of a new model for the first purpose that it has.

    Raises ConfigError for an architecture that has none of them.
    """
    for purpose in purposes[:-1]:
        if architecture in architectures.known(purpose.names, purpose.mapping):
            return list(settings.faults(_config_class(architecture, purpose), given))
    return list(settings.faults(_config_class(architecture, purposes[-1]), given))


def _refuse_faults(kind: type[PretrainedConfig], given: dict[str, Any]) -> None:
    found = [
        f"model.config.{name}: {'; '.join(filter(None, said))}"
        for name, *said in settings.faults(kind, given)
    ]
    if found:
        raise ConfigError(
            f"{kind.model_type} refuses these settings",
            where="\n       ".join(found),
            next="correct the settings, or leave them out",
        )


def fill_shape(
    architecture: str,
    asked: dict[str, Any],
    purpose: Purpose = LANGUAGE_MODEL,
    hidden_size: int = DEFAULT_HIDDEN_SIZE,
    num_hidden_layers: int = DEFAULT_LAYERS,
) -> dict[str, Any]:
    """The settings with what they leave open: a shape in the architecture's own proportions.

    Raises ConfigError for an architecture or a setting that transformers does not have.
    """
    kind = _config_class(architecture, purpose)
    _refuse_faults(kind, asked)
    names = settings.names(kind)
    given = settings.canonical(kind, asked)
    usual = settings.canonical(kind, {f.name: f.default for f in dataclasses.fields(kind)})
    heads = given.get("num_attention_heads")
    hidden = given.get("hidden_size") or _divisible(hidden_size, heads or 1)
    heads = heads or _heads(hidden)
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": heads,
        # Released defaults (8, 32) are not reconciled with a small number of heads.
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
    }
    for size in ("intermediate_size", "moe_intermediate_size", "hidden_dim"):
        if isinstance(usual.get(size), int) and isinstance(usual.get("hidden_size"), int):
            ratio = min(4.0, usual[size] / usual["hidden_size"])
            shape[size] = max(32, round(ratio * hidden / 32) * 32)
    for experts in EXPERTS:
        if isinstance(given.get(experts), int) and isinstance(usual.get(TOP_K), int):
            shape[TOP_K] = max(1, min(usual[TOP_K], given[experts]))  # no more than there are
    missing = {k: value for k, value in shape.items() if k in names and k not in given}
    return {**missing, **asked}


def _divisible(size: int, heads: int) -> int:
    """The size near to this one that an even number of weights for each head makes up."""
    return max(1, round(size / (2 * heads))) * 2 * heads


def _heads(hidden: int) -> int:
    """Heads of about HEAD_SIZE weights, an even number each where it can be."""
    most = max(1, hidden // HEAD_SIZE)
    return next((n for n in range(most, 1, -1) if hidden % (2 * n) == 0), 1)
