"""A pretrained model, opened once: its location, config and tokenizer, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import llmkit.models.experts.ensemble
import llmkit.models.transformer  # noqa: F401 (both register their architectures)
from llmkit import extras
from llmkit.config.schema import Config
from llmkit.distributed import tensor_parallel
from llmkit.distributed.launcher import n_processes
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.models import build, hub, rope
from llmkit.models import tokenizer as tokenizers
from llmkit.models.build import Purpose
from llmkit.models.directory import ENSEMBLE, check_whole, locate_model
from llmkit.models.tokenizer_saving import PROBE
from llmkit.progress import Say

ModelKind = Literal["causal", "masked", "classifier", "tagger", "answerer", "encoder-decoder"]

_PURPOSES: dict[ModelKind, Purpose] = {
    "causal": build.LANGUAGE_MODEL,
    "masked": build.MASKED_MODEL,
    "classifier": build.CLASSIFIER_MODEL,
    "tagger": build.TAGGER_MODEL,
    "answerer": build.ANSWER_MODEL,
    "encoder-decoder": build.SEQ2SEQ_MODEL,
}
_SLOW = ("marian", "m2m_100")
"""Model types whose tokenizers have no fast implementation."""
_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
"""Settings of a config that must be integers above 0; most models have these names."""

_PROBES = (*PROBE.split(), PROBE, "Once upon a time there was. HELLO World 12345", "床前明月光")


@dataclass(frozen=True)
class Pretrained:
    """A located and checked pretrained model."""

    name: str
    """The name or path that the user gave."""
    revision: str | None
    location: str
    """The directory that holds it, or its hub name."""
    config: PretrainedConfig
    """Shared by all users of the model: modify only a copy."""
    named_tokenizer: str | None = None
    """The tokenizer that the user named instead of the model's own."""
    is_divided: bool = False
    """Whether it is split across the processes (`model.tp_plan`)."""

    @property
    def kind(self) -> ModelKind:
        """The kind of the model, from the class that saved its weights."""
        architecture = (self.config.architectures or [""])[0]
        if "SequenceClassification" in architecture:
            return "classifier"
        if "TokenClassification" in architecture:
            return "tagger"
        if "QuestionAnswering" in architecture:
            return "answerer"
        if self.config.is_encoder_decoder:
            return "encoder-decoder"
        return "masked" if architecture.endswith(("MaskedLM", "PreTraining")) else "causal"

    @property
    def purpose(self) -> Purpose:
        """How transformers loads a model of this kind."""
        return _PURPOSES[self.kind]

    @property
    def vocab_size(self) -> int:
        """Number of ids that the model has embeddings for."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """Maximum number of tokens that the model can see at once; None without a limit."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return None
        # RoBERTa's positions start after its padding id; its tokenizer has the right limit.
        limit = self.tokenizer.model_max_length if self.kind == "masked" else positions
        return int(min(positions, limit))

    @property
    def is_stored_in_bf16(self) -> bool:
        """Whether the weights were saved in bf16, according to the config."""
        text = self.config.get_text_config()
        dtype = getattr(self.config, "dtype", None) or getattr(text, "dtype", None)
        return str(dtype).removeprefix("torch.") == "bfloat16"

    @cached_property
    def own_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer saved with the model, loaded once."""
        has_fast = (Path(self.location) / "tokenizer.json").is_file()
        slow = self.config.model_type in _SLOW and not has_fast
        if slow:
            what = f"a tokenizer of {self.config.model_type}"
            extras.require("sentencepiece", "translation", what, self.name)
        return tokenizers.load_tokenizer(self.location, self.revision, self.config, slow)

    @cached_property
    def unchecked_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that the user named, else the model's own, loaded once."""
        if self.named_tokenizer is None:
            return self.own_tokenizer
        return tokenizers.load_tokenizer(self.named_tokenizer)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The same, after checking that it fits the model.

        Raises ConfigError for one that gives text other ids than the model's own, or an id of the
        model's vocabulary to another token. Added tokens do not count as a difference.
        """
        given = self.unchecked_tokenizer
        if self.named_tokenizer is None:
            return given
        try:
            own = self.own_tokenizer
        except (DataError, InputNotFound):  # the model has none
            return given
        if difference := _difference(own, given):
            raise ConfigError(
                f"the tokenizer {self.named_tokenizer} differs from that of {self.name}: "
                f"{difference}, so the model would read other tokens than it was trained on",
                where="tokenizer.name_or_path",
                next="remove tokenizer.name_or_path to use the model's own tokenizer",
            )
        return given

    def check_purpose(self, purpose: Purpose) -> None:
        """Raises ConfigError if transformers cannot load the model for a purpose."""
        if type(self.config) not in purpose.mapping:
            raise ConfigError(
                f"{self.name} is a {self.config.model_type} model, for which transformers has no "
                f"{purpose.name}",
                where="model.name_or_path",
                next=f"use a model of another type, such as {purpose.common}",
            )

    def check_causal(self) -> None:
        """Raises DataError for a model that was not saved as a causal language model: transformers
        would silently load it with a randomly initialised head."""
        known = build.known_architectures(build.LANGUAGE_MODEL)
        own = self.config.architectures or []
        if self.config.model_type not in known or (own and not set(own) & set(known.values())):
            raise DataError(
                f"this is a {(own or [self.config.model_type])[0]}, not a causal language model",
                where=f"{self.name} (model.name_or_path)",
                next="use a model that was trained to generate text; `llmkit predict` runs a "
                "classifier or a tagger, and `llmkit generate` fills the masks of prompts with a "
                "masked model",
            )

    def check_mask_token(self) -> None:
        """Raises ConfigError if the tokenizer of a masked model has no mask token."""
        if self.tokenizer.mask_token_id is None:
            raise ConfigError(
                f"the tokenizer of {self.name} has no mask token",
                where="tokenizer.name_or_path",
                next="use the tokenizer that the model was trained with",
            )


def open_model(
    name: str,
    revision: str | None = None,
    named_tokenizer: str | None = None,
    encoder_decoder: bool = False,
) -> Pretrained:
    """Opens the model of a hub name, a directory or a run; its tokenizer is loaded on first use.

    Raises what `locate_model` raises, DataError for an invalid config, and ConfigError for a model
    that is not for text, or is an encoder-decoder model where that is of no use.
    """
    location = locate_model(name)
    config: PretrainedConfig = hub.fetch(AutoConfig, location, revision)
    _check_values(config, name)
    if config.is_encoder_decoder and not encoder_decoder:
        raise ConfigError(
            f"{name} is an encoder-decoder model ({config.model_type}): it is neither a causal "
            "model nor a masked model nor a classifier",
            where="model.name_or_path",
            next="use a causal model, a masked model or a classifier; or train this one with "
            "`llmkit finetune train.objective=sequence_to_sequence`",
        )
    if not hasattr(config.get_text_config(), "vocab_size"):
        raise ConfigError(
            f"{name} is a {config.model_type} model, which does not read text",
            where="model.name_or_path",
            next="use a causal model, a masked model or a text classifier",
        )
    return Pretrained(name, revision, location, config, named_tokenizer)


def of_config(config: Config, encoder_decoder: bool = False) -> Pretrained | None:
    """The model that a config names, with the tokenizer that it names; None without a model."""
    model = config.model
    if model.name_or_path is None:
        return None
    tokenizer = config.tokenizer.name_or_path
    return open_model(model.name_or_path, model.revision, tokenizer, encoder_decoder)


def to_train(config: Config) -> Pretrained | None:
    """The model that a config names, to train it further; raises ConfigError for an ensemble."""
    wants = config.train.objective in ("sequence_to_sequence", "span_corruption")
    found = of_config(config, encoder_decoder=wants)
    if found is not None and found.config.model_type == ENSEMBLE:
        raise ConfigError(
            f"{found.name} is an ensemble, whose experts are trained one by one",
            where="model.name_or_path",
            next="train the runs of its experts and merge them again; a merge with merge.into=moe "
            "or average can be trained",
        )
    return found


def to_use(config: Config) -> Pretrained | None:
    """The model that a config names, split across the processes if the config asks for it."""
    found = of_config(config, encoder_decoder=True)
    return None if found is None else divided(found, config)


def compared(config: Config) -> list[Pretrained]:
    """The same, and the models to compare it with; empty without a model."""
    first = of_config(config, encoder_decoder=True)
    if first is None:
        return []
    tokenizer = config.tokenizer.name_or_path
    others = (open_model(name, None, tokenizer) for name in config.evaluation.compare_with)
    if config.evaluation.tasks or config.evaluation.reference_model is not None:
        return [first, *others]
    return [divided(model, config) for model in (first, *others)]


def divided(model: Pretrained, config: Config) -> Pretrained:
    """The model as `model.tp_plan` asks for it; raises ConfigError if it cannot be divided."""
    count = n_processes()
    if config.model.tp_plan is None or count == 1:
        return model
    tensor_parallel.check_divisible(model.config, model.name, count)
    return replace(model, is_divided=True)


def _check_values(config: PretrainedConfig, name: str) -> None:
    """Raises DataError for values that no model can have: later errors would not name them."""
    own = config.architectures
    faults = []
    if own is not None and not (isinstance(own, list) and all(isinstance(a, str) for a in own)):
        faults.append(f"architectures is {own!r}, not a list of names")
    text = config.get_text_config()
    if not isinstance(text, PretrainedConfig):
        faults.append("text_config is not the config of a model")
    for key in _COUNTS:
        value = getattr(text, key, None)
        if value is not None and not (isinstance(value, int) and value > 0):
            faults.append(f"{key} is {value!r}, not an integer above 0")
    if faults:
        raise DataError(
            f"the model config is invalid: {'; '.join(faults)}",
            where=f"{name} (config.json)",
            next="check that the directory is complete",
        )


def _difference(own: PreTrainedTokenizerFast, given: PreTrainedTokenizerFast) -> str:
    """How two tokenizers differ; empty if one can replace the other."""
    known = {id: token for token, id in own.get_vocab().items()}
    added = own.added_tokens_decoder.keys() | given.added_tokens_decoder.keys()
    tokens = given.get_vocab().items()
    moved = sum(id in known and known[id] != token for token, id in tokens if id not in added)
    if moved:
        return f"{moved:,} of {len(known):,} ids mean other tokens"
    ids = [
        [each.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES]
        for each in (own, given)
    ]
    if ids[0] == ids[1]:
        return ""
    several = len(set(chain(*ids[0])) ^ set(chain(*ids[1])))
    return f"it splits text differently ({several:,} tokens differ in a short probe)"


_SHOWN = 6
"""Maximum number of modules that a message lists."""

_WEIGHTS = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}


def load_model(
    pretrained: Pretrained,
    purpose: Purpose | None = None,
    may_be_new: Callable[[str], bool] = lambda weight: False,
    say: Say = lambda text: None,
    **options: Any,
) -> PreTrainedModel:
    """Loads the model in fp32 for a purpose, by default its own.

    Weights for which `may_be_new` is true may be missing: they are initialised. Of tied weights the
    file may hold either. `say` reports new weights, and weights of the file that are not used.
    Raises DataError for any other weight that is missing or has another shape.
    """
    check_whole(Path(pretrained.location), weights=True)
    auto = (purpose or pretrained.purpose).auto
    model, report = _fetch(auto, pretrained, **options)
    _find_embedding(model, report, pretrained)
    new = sorted(report["missing_keys"]) + [str(key[0]) for key in report["mismatched_keys"]]
    faults = [name for name in new if not may_be_new(name)]
    if faults:
        raise DataError(
            f"{len(faults)} weights of the model are missing or have another shape: "
            + ", ".join(faults[:3]),
            where=f"{pretrained.name} (model.name_or_path)",
            next="use a directory whose weights match its config.json",
        )
    if new:
        say(f"new weights, initialised from the seed: {_module_names(new)}")
    if unused := sorted(set(report["unexpected_keys"]) - set(new)):
        say(f"weights of {pretrained.name} that are not used: {_module_names(unused)}")
    rope.use_document_lengths(model)
    return model.train()


@torch.no_grad()
def _find_embedding(model: PreTrainedModel, report: dict[str, Any], pretrained: Pretrained) -> None:
    """Loads the input embedding from the output layer of the file, if the two are tied, the file
    holds only the output layer, and the model has no output layer."""
    config, missing = model.config, set(report["missing_keys"])
    for purpose in (build.LANGUAGE_MODEL, build.MASKED_MODEL):
        mapping = purpose.mapping
        if type(config) not in mapping or not getattr(config, "tie_word_embeddings", True):
            continue
        tied = dict(mapping[type(config)]._tied_weights_keys or {}).items()
        found = {a: b for a, b in tied if a in report["unexpected_keys"] and b in missing}
        if found:
            whole, _ = _fetch(purpose.auto, pretrained)
            embedding = model.get_input_embeddings().weight
            embedding.copy_(whole.get_input_embeddings().weight)
            report["missing_keys"] = missing - set(found.values())
            report["unexpected_keys"] = set(report["unexpected_keys"]) - found.keys()
            return


def _module_names(weights: Iterable[str]) -> str:
    """Lists the modules that the weights belong to, without repeats."""
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in weights)
    return ", ".join(list(modules)[:_SHOWN]) + (" ..." if len(modules) > _SHOWN else "")


def _fetch(auto: Any, pretrained: Pretrained, **options: Any) -> Any:
    if pretrained.is_divided:
        options |= tensor_parallel.loading_options(n_processes())
    options = {"config": pretrained.config, **_WEIGHTS, **options}
    return hub.fetch(auto, pretrained.location, pretrained.revision, **options)
