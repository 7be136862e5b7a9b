"""A model that exists, from a hub name, a directory or one of our runs: whole, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

import llmkit.models.transformer  # noqa: F401 (registers our architecture)
from llmkit.errors import ConfigError, DataError, HubUnreachable, Unsafe
from llmkit.models import build, hub, rope
from llmkit.models.location import check_whole, locate
from llmkit.progress import Say

_SHOWN = 6
"""Modules that a sentence lists."""

_WEIGHTS = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
_LANGUAGE_MODELS = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING),
)


def load_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """The transformers config of a model, without its weights.

    Raises ConfigError for a model that reads no text, or that reads one text and writes another.
    """
    shape: PretrainedConfig = _from_pretrained(AutoConfig, locate(name_or_path), revision)
    _check_shape(shape, name_or_path)
    if shape.is_encoder_decoder:
        raise ConfigError(
            f"{name_or_path} reads one text and writes another ({shape.model_type}): it is "
            "neither a causal model nor a masked model nor a classifier",
            where="model.name_or_path",
            next="name a causal model, a masked model or a classifier",
        )
    if not hasattr(shape.get_text_config(), "vocab_size"):
        raise ConfigError(
            f"{name_or_path} is a {shape.model_type} model, which reads no text",
            where="model.name_or_path",
            next="name a causal model, a masked model or a classifier of text",
        )
    return shape


def is_stored_in_bf16(shape: PretrainedConfig) -> bool:
    """Whether the weights of a model were saved in bf16, by its config."""
    dtype = getattr(shape, "dtype", None) or getattr(shape.get_text_config(), "dtype", None)
    return str(dtype).removeprefix("torch.") == "bfloat16"


def config_for(
    purpose: build.Purpose, name_or_path: str, revision: str | None = None
) -> PretrainedConfig:
    """The same of a model that transformers can load for a purpose; ConfigError for another."""
    shape = load_config(name_or_path, revision)
    if type(shape) not in purpose.mapping:
        raise ConfigError(
            f"{name_or_path} is a {shape.model_type} model, of which transformers has no "
            f"{purpose.name}",
            where="model.name_or_path",
            next=f"name a model of another type, such as {purpose.common}",
        )
    return shape


_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
"""What every config counts, under these names for most models."""


def _check_shape(shape: PretrainedConfig, name: str) -> None:
    """Raises DataError for values that no model can have, which would fail anywhere later."""
    own = shape.architectures
    faults = []
    if own is not None and not (isinstance(own, list) and all(isinstance(a, str) for a in own)):
        faults.append(f"architectures is {own!r}, not a list of names")
    text = shape.get_text_config()
    if not isinstance(text, PretrainedConfig):
        faults.append("text_config is not the config of a model")
    for key in _COUNTS:
        value = getattr(text, key, None)
        if value is not None and not (isinstance(value, int) and value > 0):
            faults.append(f"{key} is {value!r}, not an integer above 0")
    if faults:
        raise DataError(
            f"the config of the model makes no sense: {'; '.join(faults)}",
            where=f"{name} (config.json)",
            next="check that the directory is whole",
        )


def causal_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """The transformers config of a causal language model, without its weights.

    Raises DataError for another kind: transformers alone would give it a head of random numbers.
    """
    shape = load_config(name_or_path, revision)
    known = build.known_architectures(build.LANGUAGE_MODEL)
    own = shape.architectures or []
    if shape.model_type not in known or (own and not set(own) & set(known.values())):
        raise DataError(
            f"this is no causal language model but a {(own or [shape.model_type])[0]}",
            where=f"{name_or_path} (model.name_or_path)",
            next="name a model that was trained to write text; `llmkit predict` asks a classifier",
        )
    return shape


def load_causal_model(
    name_or_path: str, revision: str | None = None, say: Say = lambda text: None
) -> PreTrainedModel:
    """A causal language model in fp32, with every weight from its file.

    Raises DataError when a weight is missing or does not fit: transformers alone would fill it
    with random numbers and go on.
    """
    return load_model(AutoModelForCausalLM, name_or_path, revision, say=say)


def load_masked_model(
    name_or_path: str, revision: str | None = None, say: Say = lambda text: None
) -> PreTrainedModel:
    """A masked language model in fp32, with every weight from its file, as a causal one is."""
    return load_model(AutoModelForMaskedLM, name_or_path, revision, say=say)


def load_classifier(name_or_path: str, revision: str | None = None) -> PreTrainedModel:
    """A finished classifier in fp32, with every weight of body and head from its file."""
    return load_model(AutoModelForSequenceClassification, name_or_path, revision)


def load_model(
    auto: Any,
    name_or_path: str,
    revision: str | None = None,
    may_be_new: Callable[[str], bool] = lambda weight: False,
    say: Say = lambda text: None,
    **options: Any,
) -> PreTrainedModel:
    """A model of an Auto class of transformers in fp32; only what may be new can be missing.

    Of tied weights the file may hold either. `say` gets a sentence on weights that are new and on
    weights of the file that are not used. Raises DataError for any other weight that is missing,
    or does not fit.
    """
    place = locate(name_or_path)
    check_whole(Path(place), weights=True)
    model, report = _from_pretrained(auto, place, revision, **_WEIGHTS, **options)
    _find_embedding(model, report, place, revision)
    new = sorted(report["missing_keys"]) + [str(key[0]) for key in report["mismatched_keys"]]
    faults = [name for name in new if not may_be_new(name)]
    if faults:
        raise DataError(
            f"{len(faults)} weights of the model are missing or have another shape: "
            + ", ".join(faults[:3]),
            where=f"{name_or_path} (model.name_or_path)",
            next="use a directory whose config.json and weights belong together",
        )
    if new:
        say(f"new weights, from the seed: {_parts(new)}")
    if unused := sorted(set(report["unexpected_keys"]) - set(new)):
        say(f"weights of {name_or_path} that are not used: {_parts(unused)}")
    rope.use_document_lengths(model)
    return model.train()


@torch.no_grad()
def _find_embedding(
    model: PreTrainedModel, report: dict[str, Any], place: str, revision: str | None
) -> None:
    """Takes the input embedding from the output layer of the file, where those are tied, the file
    has the output layer alone, and the model has none to share it with."""
    config, missing = model.config, set(report["missing_keys"])
    for auto, mapping in _LANGUAGE_MODELS:
        if type(config) not in mapping or not getattr(config, "tie_word_embeddings", True):
            continue
        tied = dict(mapping[type(config)]._tied_weights_keys or {}).items()
        found = {a: b for a, b in tied if a in report["unexpected_keys"] and b in missing}
        if found:
            whole, _ = _from_pretrained(auto, place, revision, **_WEIGHTS)
            embedding = model.get_input_embeddings().weight
            embedding.copy_(whole.get_input_embeddings().weight)
            report["missing_keys"] = missing - set(found.values())
            report["unexpected_keys"] = set(report["unexpected_keys"]) - found.keys()
            return


def _parts(weights: Iterable[str]) -> str:
    """The modules that weights belong to, each once."""
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in weights)
    return ", ".join(list(modules)[:_SHOWN]) + (" ..." if len(modules) > _SHOWN else "")


def _from_pretrained(auto: Any, name: str, revision: str | None, **options: Any) -> Any:
    local = Path(name).is_dir()
    try:
        return auto.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=local or not hub.answers(name, revision),
            **options,
        )
    except Exception as error:
        raise _translate(error, name, local) from error


def _translate(error: Exception, name: str, local: bool) -> Exception:
    """The fault of ours that a loading error of transformers or safetensors stands for."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    if "trust_remote_code" in text:
        return Unsafe(
            "the model brings code of its own",
            where=name,
            next="use a model that transformers knows by itself",
        )
    if not local and isinstance(error, OSError):
        return HubUnreachable(
            f"the hub did not give {name!r}: {reason}",
            where="model.name_or_path",
            next="check the name and the network, or give a local directory",
        )
    if isinstance(error, MemoryError):
        return error
    advice = "check that the directory is whole"
    if "does not recognize this architecture" in text:
        advice = "if it is one of your own, write model.code=FILE and add --allow-code"
    return DataError(f"the model cannot be read: {reason}", where=name, next=advice)
