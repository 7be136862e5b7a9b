"""A model has the size that was asked for, whatever its architecture and vocabulary."""

from __future__ import annotations

import pytest
import torch

from llmkit.config.types import parameters_of
from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.build import CLASSIFIER_MODEL, LANGUAGE_MODEL, MASKED_MODEL
from llmkit.models.sizes import TOLERANCE, settings_of_size

CASES = [
    ("llama", "tiny", 2048, LANGUAGE_MODEL),
    ("qwen3", "small", 4096, LANGUAGE_MODEL),
    ("qwen3", "base", 32768, LANGUAGE_MODEL),
    ("gpt2", "30M", 50257, LANGUAGE_MODEL),
    ("transformer", "3M", 1000, LANGUAGE_MODEL),
    ("mistral", "350M", 32000, LANGUAGE_MODEL),
    ("modernbert", "small", 8192, MASKED_MODEL),
    ("bert", "5M", 4096, MASKED_MODEL),
    ("bert", "base", 30522, CLASSIFIER_MODEL),
    ("distilbert", "tiny", 2000, CLASSIFIER_MODEL),
]


@pytest.mark.parametrize(("architecture", "size", "vocabulary", "purpose"), CASES)
def test_the_number_of_parameters_is_that_of_the_size(
    architecture, size, vocabulary, purpose
) -> None:
    settings = settings_of_size(size, architecture, {}, vocabulary, 256, purpose)
    special = {f"{name}_token_id": 1 for name in ("pad", "cls", "sep", "bos", "eos")}
    config = build.model_config(architecture, settings, vocabulary, 256, special, purpose)
    with torch.device("meta"):
        found = build.new_model(config, 0, purpose).num_parameters()
    assert found == pytest.approx(parameters_of(size), rel=TOLERANCE)


def test_settings_that_do_not_fix_the_size_are_kept() -> None:
    settings = settings_of_size("5M", "llama", {"tie_word_embeddings": True}, 4096, 128)
    assert settings["tie_word_embeddings"] is True


def test_a_size_below_the_embeddings_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        settings_of_size("100k", "llama", {}, 50000, 128)
    assert "the nearest has" in refused.value.what
    assert "tokenizer.vocab_size" in refused.value.next


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("tiny", 10**6), ("10M", 10**7), ("1.5b", 15 * 10**8), ("500 k", 500_000), ("7000", 7000)],
)
def test_sizes_are_names_or_numbers_with_a_unit(size, parameters) -> None:
    assert parameters_of(size) == parameters


@pytest.mark.parametrize("size", ["huge", "", "0M", "-3M", "10MB", "1e6"])
def test_anything_else_is_not_a_size(size) -> None:
    with pytest.raises(ValueError, match="tiny, small, base or a number such as 10M"):
        parameters_of(size)
