"""Which model, vocabulary and batch make the most of a text in the time given on this machine.

The tiers are measured up to five minutes on two CPU cores and extrapolated by compute from there:
`.github/decisions/0006-auto-settings.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.config.schema import Config
from llmkit.errors import ConfigError
from llmkit.models import build, load
from llmkit.models.build import Purpose

USABLE_SHARE = 0.4
"""Share of a machine's matrix rate that small models reach in training."""

USUAL_BLOCK = 512
"""Tokens of a block for a model that exists, where its positions allow."""

USUAL_SECONDS = 300.0
"""Time that a run without a limit in minutes is laid out for."""

PARAMETERS_PER_TOKEN = 12
"""Most weights in the layers for each token of the text: more only learn it by heart."""

BYTES_PER_TOKEN = 3.3


@dataclass(frozen=True)
class Recipe:
    """A shape and what goes with it."""

    hidden_size: int
    num_hidden_layers: int
    block_size: int
    tokens_per_step: int
    largest_vocabulary: int
    architecture: str = "qwen3"
    """Llama with its queries and keys normalised, which learns faster and takes a little longer."""

    @property
    def layer_parameters(self) -> int:
        """Weights between embeddings and output, roughly (12 hidden² a layer)."""
        return 12 * self.num_hidden_layers * self.hidden_size**2


TIERS = (
    (2.3e13, Recipe(128, 2, 64, 768, 2048, "llama")),
    (5e13, Recipe(192, 2, 128, 1024, 4096)),
    (4e14, Recipe(256, 4, 256, 2048, 4096)),
    (3e15, Recipe(384, 6, 256, 4096, 8192)),
    (2e16, Recipe(512, 8, 512, 16384, 16384)),
    (2e17, Recipe(768, 12, 1024, 65536, 32768)),
    (2e18, Recipe(1024, 16, 1024, 131072, 32768)),
    (float("inf"), Recipe(1536, 24, 1024, 262144, 32768)),
)
"""Floating-point operations up to which each is best."""


def choose(n_bytes: int, minutes: float | None, rate: float) -> tuple[Recipe, str]:
    """The recipe for a text of so many bytes, and the reason in a line.

    `rate` is the machine's matrix rate in operations per second, over all processes. A small text
    takes a small model, however long the time.
    """
    seconds = USUAL_SECONDS if minutes is None else 60 * minutes
    compute = seconds * rate * USABLE_SHARE
    fitting = next(number for number, (most, _) in enumerate(TIERS) if compute <= most)
    limit = PARAMETERS_PER_TOKEN * n_bytes / BYTES_PER_TOKEN
    number = fitting
    while number > 0 and TIERS[number][1].layer_parameters > limit:
        number -= 1
    recipe = TIERS[number][1]
    because = (
        f"{seconds:.0f} s at {rate / 1e9:,.0f} GFLOP/s"
        if number == fitting
        else f"{n_bytes:,} bytes of text"
    )
    return recipe, (
        f"{recipe.num_hidden_layers} layers {recipe.hidden_size} wide, blocks of "
        f"{recipe.block_size}, {recipe.tokens_per_step:,} tokens a step: for {because}"
    )


def settle_new(
    config: Config, recipe: Recipe, vocab_size: int, purpose: Purpose = build.LANGUAGE_MODEL
) -> Config:
    """The config of a new model with its shape, vocabulary, block and batch spelled out; what the
    user has set stays."""
    model, data = config.model, config.data
    architecture = recipe.architecture if model.architecture == "auto" else model.architecture
    shape = build.fill_shape(
        architecture,
        model.config,
        purpose,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
    )
    block = recipe.block_size if data.block_size == "auto" else data.block_size
    batch = max(1, recipe.tokens_per_step // block)
    vocabulary = min(vocab_size, recipe.largest_vocabulary)
    return _with(
        config,
        {
            "model": {"architecture": architecture, "config": shape},
            "tokenizer": {"vocab_size": vocabulary},
            "data": {"block_size": block},
            "train": {"global_batch_size": batch},
        },
    )


def settle_existing(config: Config, purpose: Purpose = build.LANGUAGE_MODEL) -> Config:
    """The config of a model that exists with its block size spelled out.

    Raises ConfigError for a shape asked of it, and for a block longer than its positions.
    """
    model, wish = config.model, config.data.block_size
    if model.config:
        raise ConfigError(
            "the shape of a model that exists cannot be changed",
            where="model.config",
            next="leave model.config or model.name_or_path out",
        )
    assert model.name_or_path is not None
    shape = load.config_for(purpose, model.name_or_path, model.revision)
    positions = getattr(shape, "max_position_embeddings", None) or USUAL_BLOCK
    if purpose is not build.LANGUAGE_MODEL:
        positions -= build.unused_positions(shape, purpose)
    block = min(positions, USUAL_BLOCK) if wish == "auto" else wish
    if block > positions:
        raise ConfigError(
            f"a block of {block} tokens is longer than the model's {positions} positions",
            where="data.block_size",
            next=f"write data.block_size={positions} or less",
        )
    return _with(config, {"data": {"block_size": block}})


def settle_again(config: Config, settled: Mapping[str, Any]) -> Config:
    """The config with what was settled when its run began."""
    shape = {**settled["model"]["config"], **config.model.config}
    return _with(config, {**settled, "model": {**settled["model"], "config": shape}})


def settled(config: Config) -> dict[str, Any]:
    """What `settle_again` needs, as JSON."""
    return {
        "model": {"architecture": config.model.architecture, "config": config.model.config},
        "tokenizer": {"vocab_size": config.tokenizer.vocab_size},
        "data": {"block_size": config.data.block_size},
        "train": {"global_batch_size": config.train.global_batch_size},
    }


def _with(config: Config, settled: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config with these values where it says `auto`; a model's shape is taken as it is."""
    sections = {}
    for name, values in settled.items():
        section = getattr(config, name)
        left_open = {
            key: value
            for key, value in values.items()
            if key == "config" or getattr(section, key) == "auto"
        }
        sections[name] = section.model_copy(update=left_open)
    return config.model_copy(update=sections)
