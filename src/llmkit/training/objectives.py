"""What a language model is pretrained to predict: the next token, or tokens that are hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.config import jobs, objectives
from llmkit.config.schema import Config
from llmkit.data import order
from llmkit.data.blocks import Blocks
from llmkit.data.masking import MaskedBlocks, Vocabulary
from llmkit.data.tokens import TokenFile
from llmkit.errors import ConfigError
from llmkit.models import build, logits, moe, packing
from llmkit.models import tokenizer as tokenizers
from llmkit.models.build import Purpose, known_architectures
from llmkit.models.pretrained import open_model
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.masked import MaskedLoss
from llmkit.training.tasks.task import Examples, Loss

MODERN = {"modernbert": 0.3, "nomic_bert": 0.3, "transformer": 0.3}
"""Shares of tokens that are hidden in the training of models after BERT (Wettig et al. 2023, arXiv
2202.08005; Warner et al. 2024, arXiv 2412.13663)."""

USUAL_PROBABILITY = 0.15

ARCHITECTURE = "modernbert"
"""What a new masked model is."""

_FEWEST = 4  # tokens of a masked block: two frame the others


class Objective(Protocol):
    """What differs between objectives, all else of a run being the same."""

    @property
    def purpose(self) -> Purpose:
        """What the model is for."""

    @property
    def figures(self) -> tuple[str, ...]:
        """What validation says."""

    @property
    def unit(self) -> str:
        """What a prediction is called."""

    def ids(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The ids of special tokens that a new model is told."""

    def take(self, tokenizer: PreTrainedTokenizerFast, config: Config) -> None:
        """Refuses a tokenizer that does not do."""

    def examples(
        self, file: TokenFile, config: Config, tokenizer: PreTrainedTokenizerFast, held_out: bool
    ) -> Any:
        """The examples of a token file."""

    def loss_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], Loss]:
        """Makes the loss that measures given examples."""

    def rows_of_step(self, examples: Examples, seed: int) -> Callable[..., Any]:
        """Which rows form a step."""


@dataclass(frozen=True)
class Causal:
    """Each token from those before it."""

    purpose: Purpose = build.LANGUAGE_MODEL
    figures: tuple[str, ...] = jobs.CAUSAL_METRICS
    unit: str = "tokens"

    def ids(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """Those of texts."""
        return _ids(tokenizer, "bos", "eos", "pad")

    def take(self, tokenizer: PreTrainedTokenizerFast, config: Config) -> None:
        """Any tokenizer will do."""

    def examples(
        self, file: TokenFile, config: Config, tokenizer: PreTrainedTokenizerFast, held_out: bool
    ) -> Blocks:
        """Blocks, the same for training and validation."""
        return Blocks(file, _block_size(config), config.data.isolate_documents)

    def loss_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], Loss]:
        """Makes the loss for examples of so many bytes."""
        if isolated:
            packing.check_isolation(model)
        linear, balance = logits.has_linear_head(model), moe.balance(model)
        return lambda examples: CausalLoss(examples.n_bytes if examples else 0, linear, balance)

    def rows_of_step(self, examples: Examples, seed: int) -> Callable[..., Any]:
        """Every example once in each epoch."""
        return partial(order.rows_of_step, n_examples=len(examples), seed=seed)


@dataclass(frozen=True)
class Masked:
    """Hidden tokens from those on both sides."""

    purpose: Purpose = build.MASKED_MODEL
    figures: tuple[str, ...] = jobs.MASKED_METRICS
    unit: str = "predictions"

    def ids(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """Those of texts, and what BERT calls the same."""
        return _ids(tokenizer, "bos", "eos", "pad", "cls", "sep")

    def take(self, tokenizer: PreTrainedTokenizerFast, config: Config) -> None:
        """Raises ConfigError for a tokenizer without a mask or a padding token, and for a block
        without room; else sets what ends a text, and the longest one."""
        for name in ("mask", "pad"):
            if getattr(tokenizer, f"{name}_token_id") is None:
                named = config.tokenizer.name_or_path or config.model.name_or_path
                raise ConfigError(
                    f"the tokenizer {named} has no {name} token, and train.objective is masked",
                    where="tokenizer.name_or_path",
                    next="use one that has it, or leave tokenizer.name_or_path out for a new model",
                )
        if _block_size(config) < _FEWEST:
            raise ConfigError(
                f"a block of {config.data.block_size} tokens has no room between the two that "
                "frame it",
                where="data.block_size",
                next=f"write data.block_size={_FEWEST} or more",
            )
        tokenizers.set_frame(tokenizer)
        if config.model.name_or_path is None:
            tokenizer.model_max_length = _block_size(config)

    def examples(
        self, file: TokenFile, config: Config, tokenizer: PreTrainedTokenizerFast, held_out: bool
    ) -> MaskedBlocks:
        """Blocks with masks: of validation the same in every run."""
        train = config.train
        assert isinstance(train.mask_probability, float)
        whole = train.whole_word_masking
        vocabulary = Vocabulary(
            mask_id=tokenizer.mask_token_id,
            pad_id=tokenizer.pad_token_id,
            special=tokenizers.special_tokens(tokenizer),
            word_edges=tokenizers.word_edges(tokenizer) if whole else None,
        )
        return MaskedBlocks(
            file,
            _block_size(config),
            config.data.isolate_documents,
            train.mask_probability,
            vocabulary,
            seed="validation" if held_out else f"training/{config.seed}",
        )

    def loss_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], Loss]:
        """Makes the same loss for all examples."""
        masks = packing.document_masks(model) if isolated else None
        loss = MaskedLoss(logits.split_head(model), masks)
        return lambda examples: loss

    def rows_of_step(self, examples: Examples, seed: int) -> Callable[..., Any]:
        """Every example once in each epoch, each time as another occurrence."""
        return partial(order.occurrences_of_step, n_examples=len(examples), seed=seed)


def of(config: Config) -> Objective:
    """The objective of a settled config."""
    return Masked() if config.train.objective == "masked" else Causal()


def settled(config: Config) -> Config:
    """The config with its objective spelled out, and the share of tokens that it hides.

    Raises ConfigError where the model cannot learn it, and for settings of another objective.
    """
    train, model = config.train, config.model
    kind, can = _abilities(config)
    chosen = can[0] if train.objective == "auto" else train.objective
    if chosen not in can:
        sees = {"causal": "only what is before a token", "masked": "what is on both sides"}
        raise ConfigError(
            f"{kind} sees {sees[can[0]]}: it is a {can[0]} language model",
            where=f"train.objective: {train.objective}",
            next=f"leave train.objective out, or choose a model that is {chosen}: "
            f"{(Masked if chosen == 'masked' else Causal)().purpose.common}",
        )
    objectives.refuse_others(config, f"pretrain/{chosen}")
    probability = train.mask_probability
    if chosen == "masked" and probability == "auto":
        of_kind = ARCHITECTURE if kind == "auto" else kind
        probability = MODERN.get(of_kind, USUAL_PROBABILITY)
    values = {"objective": chosen, "mask_probability": probability}
    if chosen == "masked" and model.name_or_path is None and model.architecture == "auto":
        model = model.model_copy(update={"architecture": ARCHITECTURE})
    return config.model_copy(update={"train": train.model_copy(update=values), "model": model})


def _abilities(config: Config) -> tuple[str, tuple[str, ...]]:
    """The type of the model, and the objectives that it can learn, the likeliest first."""
    model = config.model
    if model.name_or_path is not None:
        shape = open_model(model.name_or_path, model.revision).config
        return shape.model_type, _of_model(shape)
    if model.architecture == "auto":
        return "auto", ("causal", "masked")
    if model.architecture not in CONFIG_MAPPING:
        return model.architecture, ("causal", "masked")  # what builds it refuses it
    decodes = model.config.get("is_decoder", _default_of("is_decoder", model.architecture))
    return model.architecture, _of_type(model.architecture, decodes)


def _of_model(shape: PretrainedConfig) -> tuple[str, ...]:
    """What a model that exists was trained for, by the class that its weights were saved from."""
    saved = set(shape.architectures or ())
    if any(name.endswith("ForPreTraining") for name in saved):
        return ("masked",)
    kinds = {"causal": build.LANGUAGE_MODEL, "masked": build.MASKED_MODEL}
    known = {kind: set(known_architectures(purpose).values()) for kind, purpose in kinds.items()}
    can = tuple(kind for kind, classes in known.items() if saved & classes)
    return can or _of_type(shape.model_type, getattr(shape, "is_decoder", None))


def _of_type(kind: str, decodes: object) -> tuple[str, ...]:
    """The same by the architecture alone; those of BERT's kind say whether they are decoders."""
    masked = kind in known_architectures(build.MASKED_MODEL)
    causal = kind in known_architectures(build.LANGUAGE_MODEL)
    if masked and (not causal or decodes is False):
        return ("masked",)
    return ("causal", "masked") if masked and decodes is None else ("causal",)


def _default_of(setting: str, kind: str) -> object:
    return getattr(CONFIG_MAPPING[kind], setting, None)


def _ids(tokenizer: PreTrainedTokenizerFast, *names: str) -> dict[str, int]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return {name: number for name, number in ids.items() if number is not None}


def _block_size(config: Config) -> int:
    assert isinstance(config.data.block_size, int)
    return config.data.block_size
