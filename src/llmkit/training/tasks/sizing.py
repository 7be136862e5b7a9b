"""Choose model, vocabulary and batch for a text and an optional time limit.

The text alone decides, so that every machine and any number of processes train the same model; the
speed of the machine only counts if there is a time limit. The tiers are measured up to five
minutes on two CPU cores and extrapolated from there: `.github/decisions/0006-auto-settings.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmkit.config.schema import Config
from llmkit.config.types import parameters_of
from llmkit.distributed import device
from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError, DataError
from llmkit.models import build
from llmkit.models.build import Purpose
from llmkit.models.pretrained import Pretrained
from llmkit.models.sizes import settings_of_size
from llmkit.training.schedule import readable_minutes
from llmkit.training.tasks import defaults

USABLE_SHARE = 0.4
"""Share of a machine's peak matrix rate that small models reach in training."""

USUAL_BLOCK = 512
"""Tokens per block for a pretrained model, if its positions allow."""

_LEAST_STEPS = 128
"""Number of steps per epoch of a small text: fewer and larger steps learn less."""

PARAMETERS_PER_TOKEN = 12
"""Maximum number of layer weights per token of the text: more would overfit."""

BYTES_PER_TOKEN = 3.3


@dataclass(frozen=True)
class Recipe:
    """A model size with matching block and batch."""

    hidden_size: int
    num_hidden_layers: int
    block_size: int
    tokens_per_step: int
    largest_vocabulary: int
    architecture: str = "qwen3"
    """Llama with normalised queries and keys, which learns faster but is slightly slower."""

    @property
    def layer_parameters(self) -> int:
        """Approximate number of weights between embeddings and output (12 hidden² per layer)."""
        return 12 * self.num_hidden_layers * self.hidden_size**2

    @property
    def parameters(self) -> int:
        """Approximate number of weights."""
        return self.layer_parameters + self.largest_vocabulary * self.hidden_size


@dataclass(frozen=True)
class Tier:
    """The range in which a recipe is best."""

    operations: float
    """Maximum number of floating-point operations of a run with a time limit."""
    n_bytes: float
    """Maximum text of a run without a time limit: an epoch takes minutes to hours on its usual
    device, two CPU cores up to some hundred megabytes, one GPU above."""
    recipe: Recipe


TIERS = (
    Tier(2.3e13, 1e6, Recipe(128, 2, 64, 768, 2048, "llama")),
    Tier(5e13, 5e6, Recipe(192, 2, 128, 1024, 4096)),
    Tier(4e14, 2e8, Recipe(256, 4, 256, 2048, 4096)),
    Tier(3e15, 1e9, Recipe(384, 6, 256, 4096, 8192)),
    Tier(2e16, 5e9, Recipe(512, 8, 512, 16384, 16384)),
    Tier(2e17, 2e10, Recipe(768, 12, 1024, 65536, 32768)),
    Tier(2e18, 1e11, Recipe(1024, 16, 1024, 131072, 32768)),
    Tier(float("inf"), float("inf"), Recipe(1536, 24, 1024, 262144, 32768)),
)


def for_text(n_bytes: int) -> Recipe:
    """The recipe for one epoch over this much text, on any machine."""
    recipe = next(tier.recipe for tier in TIERS if n_bytes <= tier.n_bytes)
    return _for_little_text(recipe, n_bytes)


def _for_little_text(recipe: Recipe, n_bytes: int) -> Recipe:
    """The recipe with steps so small that an epoch has enough of them."""
    most = max(recipe.block_size, int(n_bytes / BYTES_PER_TOKEN / _LEAST_STEPS))
    return replace(recipe, tokens_per_step=min(recipe.tokens_per_step, most))


def for_minutes(n_bytes: int, minutes: float, rate: float) -> Recipe:
    """The recipe that learns most in this time.

    `rate` is the peak matrix rate in operations per second, over all processes. A small text gets a
    small model, however long the time.
    """
    operations = 60 * minutes * rate * USABLE_SHARE
    limit = PARAMETERS_PER_TOKEN * n_bytes / BYTES_PER_TOKEN
    number = next(n for n, tier in enumerate(TIERS) if operations <= tier.operations)
    while number > 0 and TIERS[number].recipe.layer_parameters > limit:
        number -= 1
    return TIERS[number].recipe


def for_parameters(n_bytes: int, size: str) -> Recipe:
    """The recipe of a model with this many parameters, on any machine; its width and depth are
    replaced by what gives the size exactly."""
    wanted = parameters_of(size)
    tier = min(TIERS, key=lambda each: abs(math.log(each.recipe.parameters / wanted)))
    return _for_little_text(tier.recipe, n_bytes)


def explained(asked: Config, resolved: Config, because: str) -> str:
    """A message with the keys that were chosen, and why; empty if nothing was chosen."""
    chosen = {}
    for name in ("hidden_size", "num_hidden_layers"):
        if name in resolved.model.config and name not in asked.model.config:
            chosen[f"model.config.{name}"] = resolved.model.config[name]
    keys = [("model", "architecture"), ("data", "block_size"), ("train", "global_batch_size")]
    if asked.tokenizer.name_or_path is None and asked.model.name_or_path is None:
        keys.append(("tokenizer", "vocab_size"))
    for section, key in keys:
        before, after = (getattr(getattr(each, section), key) for each in (asked, resolved))
        if before != after:
            chosen[f"{section}.{key}"] = after
    if not chosen:
        return ""
    return f"auto: {', '.join(f'{key}={value}' for key, value in chosen.items())} ({because})"


@dataclass(frozen=True)
class Sizes:
    """Sizes resolved before the text is read, and kept when a run resumes."""

    block_size: int
    global_batch_size: int
    vocab_size: int
    """Of a new tokenizer."""
    architecture: str
    model_config: dict[str, Any]
    """Of a new model."""

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any], config: Config) -> Sizes:
        """The sizes recorded by `as_json`; explicit values in the config win.

        Raises DataError if they are damaged.
        """

        def either(section: str, key: str) -> Any:
            asked = getattr(getattr(config, section), key)
            return recorded[section][key] if asked == "auto" else asked

        try:
            return cls(
                either("data", "block_size"),
                either("train", "global_batch_size"),
                either("tokenizer", "vocab_size"),
                either("model", "architecture"),
                {**recorded["model"]["config"], **config.model.config},
            )
        except (LookupError, TypeError) as error:
            raise DataError(
                f"the sizes that the run recorded are damaged ({error})",
                where="run.json: `sizes`",
                kept="the run, untouched",
                next="restore run.json, or remove `sizes` from it to choose them again",
            ) from error

    def written_to(self, config: Config) -> Config:
        """The config with these sizes."""
        is_new = config.model.name_or_path is None
        return config.changed(
            model={"architecture": self.architecture, "config": self.model_config},
            tokenizer={"vocab_size": self.vocab_size} if is_new else {},
            data={"block_size": self.block_size},
            train={"global_batch_size": self.global_batch_size},
        )


def as_json(config: Config) -> dict[str, Any]:
    """The sizes of a config, for the record of a run."""
    return {
        "model": {"architecture": config.model.architecture, "config": config.model.config},
        "tokenizer": {"vocab_size": config.tokenizer.vocab_size},
        "data": {"block_size": config.data.block_size},
        "train": {"global_batch_size": config.train.global_batch_size},
    }


def choose_recipe(n_bytes: int, config: Config, processes: Processes) -> tuple[Recipe, str]:
    """The recipe of a new model for this much text, and a description of the other factors."""
    minutes, size = config.train.max_minutes, config.model.size
    if size is not None:
        return for_parameters(n_bytes, size), f" and model.size={size}"
    if minutes is None:
        return for_text(n_bytes), ""
    measured = device.matrix_rate(processes.device, processes.precision)
    rate = processes.largest([measured])[0] * processes.count
    return for_minutes(n_bytes, minutes, rate), (
        f" and {readable_minutes(minutes)} at the {rate / 1e9:,.0f} GFLOP/s that this machine has "
        "now"
    )


def of_new(
    config: Config, recipe: Recipe, vocab_size: int, purpose: Purpose = build.LANGUAGE_MODEL
) -> Sizes:
    """The sizes of a new model; the user's own values are kept."""
    model, asked = config.model, config.train.global_batch_size
    architecture = recipe.architecture if model.architecture == "auto" else model.architecture
    block = recipe.block_size if config.data.block_size == "auto" else config.data.block_size
    batch = max(1, recipe.tokens_per_step // block) if asked == "auto" else asked
    size = config.tokenizer.vocab_size
    vocabulary = min(vocab_size, recipe.largest_vocabulary) if size == "auto" else size
    if model.size is not None:
        filled = settings_of_size(
            model.size, architecture, model.config, vocabulary, block, purpose
        )
    else:
        filled = build.fill_settings(
            architecture,
            model.config,
            purpose,
            hidden_size=recipe.hidden_size,
            num_hidden_layers=recipe.num_hidden_layers,
        )
    return Sizes(block, batch, vocabulary, architecture, filled)


def block_of(requested: int | Literal["auto"], positions: int) -> int:
    """The block to train or measure a pretrained model in, which has this many positions."""
    return min(positions, USUAL_BLOCK) if requested == "auto" else requested


def of_pretrained(
    config: Config,
    pretrained: Pretrained,
    n_bytes: int,
    device: str,
    purpose: Purpose = build.LANGUAGE_MODEL,
) -> Sizes:
    """The block and batch of a pretrained model for this much text.

    Raises ConfigError for settings that its config does not have, and for a block longer than its
    positions.
    """
    model, requested = config.model, config.data.block_size
    given = {name: getattr(pretrained.config, name, None) for name in model.config}
    changed = {name: value for name, value in given.items() if value != model.config[name]}
    if changed:
        name, value = next(iter(changed.items()))
        raise ConfigError(
            f"the size of a pretrained model cannot be changed: {name} of {pretrained.name} is "
            f"{value}, not {model.config[name]}",
            where=f"model.config.{name}",
            next="remove model.config or model.name_or_path",
        )
    pretrained.check_purpose(purpose)
    positions = getattr(pretrained.config, "max_position_embeddings", None) or USUAL_BLOCK
    if purpose is not build.LANGUAGE_MODEL:
        positions -= build.unused_positions(pretrained.config, purpose)
    block = block_of(requested, positions)
    if block > positions:
        raise ConfigError(
            f"a block of {block} tokens is longer than the model's {positions} positions",
            where="data.block_size",
            next=f"set data.block_size={positions} or less",
        )
    tokens = round(n_bytes / BYTES_PER_TOKEN)
    hidden = int(pretrained.config.get_text_config().hidden_size)
    batch = defaults.global_batch_size(config.train, -(-tokens // block), block, hidden, device)
    return Sizes(block, batch, pretrained.vocab_size, model.architecture, {})
