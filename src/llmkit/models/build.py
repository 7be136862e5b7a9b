"""Build a new model of any architecture of transformers, with seeded weights."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import llmkit.models.transformer  # noqa: F401 (registers our architecture)
from llmkit.errors import ConfigError, listed
from llmkit.models import rope

DEFAULT_HIDDEN_SIZE = 256
DEFAULT_LAYERS = 4
HEAD_SIZE = 64

_WIDTHS = (
    "intermediate_size", "moe_intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim",
    "decoder_ffn_dim",
)  # fmt: skip
"""Settings for the width of a feed-forward network."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = "num_experts_per_tok"
"""The settings for a layer's number of experts, and for the number that a token is routed to."""

ConfigClass = type[PretrainedConfig]
SettingFault = tuple[str, str, str]
"""A setting, what is wrong with it, and what to write instead (may be empty)."""

SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
"""Settings that must be at least 1, under the names that all architectures share."""


@dataclass(frozen=True)
class Purpose:
    """What a model is for, and how transformers builds one for it."""

    name: str
    auto: Any
    """The Auto class of transformers."""
    names: Mapping[str, Any]
    mapping: Mapping[Any, Any]
    """The classes of transformers for it: model type -> class name, config class -> class."""
    common: str
    length_key: str


LANGUAGE_MODEL = Purpose(
    "causal language model",
    modeling_auto.AutoModelForCausalLM,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "llama, gpt2, qwen3, mistral, mixtral, gpt_neox, olmo2, transformer",
    "data.block_size",
)
MASKED_MODEL = Purpose(
    "masked language model",
    modeling_auto.AutoModelForMaskedLM,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    "modernbert, bert, roberta, distilbert, electra, deberta-v2, transformer",
    "data.block_size",
)
CLASSIFIER_MODEL = Purpose(
    "sequence classifier",
    modeling_auto.AutoModelForSequenceClassification,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama",
    "data.max_length",
)

TAGGER_MODEL = Purpose(
    "token classifier",
    modeling_auto.AutoModelForTokenClassification,
    modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama",
    "data.max_length",
)

SEQ2SEQ_MODEL = Purpose(
    "encoder-decoder model",
    modeling_auto.AutoModelForSeq2SeqLM,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "t5, bart, mt5, mbart, marian, m2m_100, pegasus",
    "data.max_length",
)

ANSWER_MODEL = Purpose(
    "model for question answering",
    modeling_auto.AutoModelForQuestionAnswering,
    modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "bert, roberta, distilbert, electra, deberta-v2, modernbert",
    "data.max_length",
)


def known_architectures(purpose: Purpose) -> dict[str, str]:
    """Model type -> class name, of all architectures that can be built for a purpose."""
    known = {kind: purpose.names[kind] for kind in CONFIG_MAPPING_NAMES if kind in purpose.names}
    for kind in registered_architectures():
        if CONFIG_MAPPING[kind] in purpose.mapping:
            known[kind] = purpose.mapping[CONFIG_MAPPING[kind]].__name__
    return known


def registered_architectures() -> set[str]:
    """The model types that were registered in addition to those of transformers."""
    return set(CONFIG_MAPPING) - set(CONFIG_MAPPING_NAMES)


def model_config(
    architecture: str,
    asked: dict[str, Any],
    vocab_size: int,
    length: int,
    special: dict[str, int],
    purpose: Purpose = LANGUAGE_MODEL,
) -> PretrainedConfig:
    """The transformers config of a new model; settings missing in `asked` get values for a small
    model.

    `length` is the maximum number of tokens of its context; `special` holds the token ids
    (`bos_token_id`, ...) of the tokenizer, since the defaults are those of the released model.
    Raises ConfigError for an architecture without such a model, an unknown setting (transformers
    would ignore it silently) and values that do not fit.
    """
    kind = _config_class(architecture, purpose)
    chosen = {**special, **fill_settings(architecture, asked, purpose)}
    chosen.setdefault("vocab_size", vocab_size)
    if chosen["vocab_size"] < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} tokens, the model only {chosen['vocab_size']}",
            where="model.config.vocab_size",
            next=f"remove it, or write at least {vocab_size}",
        )
    positions = canonical_settings(kind, asked).get("max_position_embeddings")
    if positions is None:
        chosen["max_position_embeddings"] = length
    made = _make_config(kind, chosen)
    unused = 0 if purpose is LANGUAGE_MODEL else unused_positions(made, purpose)
    if positions is None:
        wider = {**chosen, "max_position_embeddings": length + unused}
        return _make_config(kind, wider) if unused else made
    if positions - unused < length:
        raise ConfigError(
            f"{length} tokens exceed the model's {positions - unused} positions",
            where=f"{purpose.length_key}, model.config.max_position_embeddings",
            next=f"write {purpose.length_key}={positions - unused} or more positions",
        )
    return made


def unused_positions(config: PretrainedConfig, purpose: Purpose) -> int:
    """The number of positions that no token gets: RoBERTa and similar models count from after the
    padding id."""
    with torch.device("meta"):
        model = _build(config, purpose)
    for name, module in model.named_modules():
        is_position = isinstance(module, nn.Embedding) and "position" in name
        if is_position and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def causal_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A causal language model with new weights."""
    return new_model(config, seed, LANGUAGE_MODEL)


def classifier(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A classifier with new weights."""
    return new_model(config, seed, CLASSIFIER_MODEL)


def new_model(config: PretrainedConfig, seed: int, purpose: Purpose) -> PreTrainedModel:
    """A model with new fp32 weights: the same for the same config and seed."""
    torch.manual_seed(seed)
    model = _build(config, purpose, dtype=torch.float32)
    rope.use_document_lengths(model)
    return model.train()


def _build(config: PretrainedConfig, purpose: Purpose, **options: Any) -> PreTrainedModel:
    """The model of a config; raises ConfigError if its values cannot be combined."""
    try:
        return purpose.auto.from_config(config, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # each model has its own checks
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise ConfigError(
            f"cannot build a {config.model_type} model from its config: "
            f"{type(error).__name__}: {reason}",
            where="model.config, or config.json of the model",
            next="correct the value that the reason names",
        ) from error


def _make_config(kind: type[PretrainedConfig], chosen: dict[str, Any]) -> PretrainedConfig:
    try:
        return kind(**with_floats(kind, chosen))
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"{kind.model_type} rejects these settings: {reason}", where="model.config"
        ) from error


def _config_class(architecture: str, purpose: Purpose) -> type[PretrainedConfig]:
    known = sorted(known_architectures(purpose))
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
) -> list[SettingFault]:
    """Everything that is wrong with the settings of a new model, built for the first purpose that
    its architecture supports.

    Raises ConfigError for an architecture that supports none of them.
    """
    for purpose in purposes[:-1]:
        if architecture in known_architectures(purpose):
            return list(_faults(_config_class(architecture, purpose), given))
    return list(_faults(_config_class(architecture, purposes[-1]), given))


def _refuse_faults(kind: type[PretrainedConfig], given: dict[str, Any]) -> None:
    found = [
        f"model.config.{name}: {'; '.join(filter(None, texts))}"
        for name, *texts in _faults(kind, given)
    ]
    if found:
        raise ConfigError(
            f"{kind.model_type} rejects these settings",
            where=listed(found),
            next="correct the settings, or remove them",
        )


def fill_settings(
    architecture: str,
    asked: dict[str, Any],
    purpose: Purpose = LANGUAGE_MODEL,
    hidden_size: int = DEFAULT_HIDDEN_SIZE,
    num_hidden_layers: int = DEFAULT_LAYERS,
) -> dict[str, Any]:
    """Completes the settings of a new model with sizes in the architecture's own proportions.

    Raises ConfigError for an architecture or a setting that transformers does not have.
    """
    kind = _config_class(architecture, purpose)
    _refuse_faults(kind, asked)
    names = setting_names(kind)
    given = canonical_settings(kind, asked)
    usual = canonical_settings(kind, {f.name: f.default for f in dataclasses.fields(kind)})
    heads = given.get("num_attention_heads")
    hidden = given.get("hidden_size") or _divisible(hidden_size, heads or 1)
    heads = heads or _default_heads(hidden)
    filled = {
        "hidden_size": hidden,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": heads,
        # Released defaults (8, 32) are not reconciled with a small number of heads.
        "num_key_value_heads": heads,
        "decoder_attention_heads": heads,
        "head_dim": hidden // heads,
    }
    for decoder in ("decoder_layers", "num_decoder_layers"):
        filled[decoder] = given.get("num_hidden_layers") or num_hidden_layers
    for size in _WIDTHS:
        if isinstance(usual.get(size), int) and isinstance(usual.get("hidden_size"), int):
            ratio = min(4.0, usual[size] / usual["hidden_size"])
            filled[size] = max(32, round(ratio * hidden / 32) * 32)
    for experts in EXPERTS:
        if isinstance(given.get(experts), int) and isinstance(usual.get(TOP_K), int):
            filled[TOP_K] = max(1, min(usual[TOP_K], given[experts]))  # at most all experts
    missing = {k: value for k, value in filled.items() if k in names and k not in given}
    return {**missing, **asked}


def _divisible(size: int, heads: int) -> int:
    """The nearest size that gives each head an even number of channels."""
    return max(1, round(size / (2 * heads))) * 2 * heads


def _default_heads(hidden: int) -> int:
    """The number of heads of about HEAD_SIZE channels, an even number each if possible."""
    most = max(1, hidden // HEAD_SIZE)
    return next((n for n in range(most, 1, -1) if hidden % (2 * n) == 0), 1)


def setting_names(kind: ConfigClass) -> set[str]:
    """The settings that a config class accepts."""
    fields = {field.name for field in dataclasses.fields(kind)}
    # A user's own config class may have an __init__ instead of fields.
    return fields | set(kind.attribute_map) | set(inspect.signature(kind).parameters) - {"kwargs"}


def canonical_settings(kind: ConfigClass, settings: dict[str, Any]) -> dict[str, Any]:
    """Renames settings to the names that all architectures share (`n_embd` to `hidden_size`)."""
    shared = {own: name for name, own in kind.attribute_map.items()}
    return {shared.get(name, name): value for name, value in settings.items()}


def with_floats(kind: ConfigClass, settings: dict[str, Any]) -> dict[str, Any]:
    """Converts ints to floats where the config class accepts only a float, as for a dropout of
    0."""
    return {
        name: float(value) if type(value) is int and type_refusal(kind, name, value) else value
        for name, value in settings.items()
    }


def type_refusal(kind: ConfigClass, name: str, value: Any) -> str:
    """Why the config class rejects the type of a setting; empty if it accepts it."""
    try:
        kind(**{name: value})
    except StrictDataclassFieldValidationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        return reason.replace(f"Field '{name}' ", "").partition(" (value:")[0]
    except Exception:  # caused by the defaults of other settings, which the config may change
        return ""
    return ""


def _faults(kind: ConfigClass, settings: dict[str, Any]) -> Iterator[SettingFault]:
    """Yields everything that is wrong with settings, before a model is built from them."""
    known = setting_names(kind)
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `model.config.{near[0]}`?" if near else "remove it"
            yield name, f"{kind.model_type} has no such setting", hint
        elif reason := type_refusal(kind, name, with_floats(kind, {name: value})[name]):
            yield name, reason, ""
        elif _is_invalid_count(kind, name, value):
            yield name, f"should be int >= 1; got {value}", ""
    yield from _head_faults(kind, settings)


def _is_invalid_count(kind: ConfigClass, name: str, value: Any) -> bool:
    (shared,) = canonical_settings(kind, {name: value})
    return shared in SIZES and value is not None and (type(value) is not int or value < 1)


def _head_faults(kind: ConfigClass, settings: dict[str, Any]) -> Iterator[SettingFault]:
    """Yields sizes that cannot be divided evenly among the heads."""
    own = dict(zip(canonical_settings(kind, settings), settings, strict=True))
    given = {
        n: v for n, v in canonical_settings(kind, settings).items() if type(v) is int and v > 0
    }
    hidden, heads = given.get("hidden_size"), given.get("num_attention_heads")
    groups, width = given.get("num_key_value_heads"), given.get("head_dim")
    if hidden and heads and "head_dim" not in setting_names(kind) and hidden % heads:
        what = f"{hidden} is not a multiple of the {heads} attention heads"
        fewer, multiple = _divisor(hidden, heads), hidden // heads * heads or heads
        yield own["hidden_size"], what, f"write {multiple}, or {fewer} heads"
    if heads and groups and heads % groups:
        what = f"the {heads} attention heads are not a multiple of {groups}"
        yield own["num_key_value_heads"], what, f"write {_divisor(heads, groups)}"
    wide = width or (hidden // heads if hidden and heads else 0)
    if "head_dim" in setting_names(kind) and "rope_parameters" in setting_names(kind) and wide % 2:
        what = f"the head size {wide} is odd, and rotary positions need an even one"
        yield own["head_dim" if width else "hidden_size"], what, "choose an even head size"


def _divisor(whole: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if whole % n == 0)
