"""What is saved is what was trained: AutoTokenizer gives back the tokenizer of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from llmkit.errors import ConfigError
from llmkit.models import build, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.tokenizer_saving import PROBE

CODE = "def add(x, y):\n    return x + y  # 12345, 2024-11-25\n\n\nclass A:\n\tvalue = 1000\n"
TEXTS = [
    CODE,
    "It's caf\u00e9; they're e\u0301te\u0301.  I'm 365 days old.\n",
    "\u6625\u7720\u4e0d\u89ba\u66c9",
] * 5
READ_OTHERWISE = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp")
"""Model types whose tokenizer class has a rule of its own for splitting words."""

PURPOSES = (build.LANGUAGE_MODEL, build.MASKED_MODEL, build.CLASSIFIER_MODEL)
ALL = sorted({kind for each in PURPOSES for kind in build.known_architectures(each)})

Train = Callable[..., PreTrainedTokenizerFast]
TRAINERS = pytest.mark.parametrize(
    "train", [tokenizers.train_bpe, tokenizers.train_bpe_with_frame], ids=["causal", "framed"]
)


def loaded(
    tokenizer: PreTrainedTokenizerFast, kind: str, directory: Path
) -> PreTrainedTokenizerFast:
    """The tokenizer as plain transformers reads it beside a model of this type."""
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": kind}))
    return AutoTokenizer.from_pretrained(directory)


def check_trained(train: Train, kind: str, directory: Path) -> None:
    made = train(TEXTS, 400, kind)
    back = loaded(made, kind, directory)
    for text in (PROBE, *TEXTS[:3], " ".join(TEXTS)):
        assert back(text)["input_ids"] == made(text)["input_ids"]
    assert back("a", CODE)["input_ids"] == made("a", CODE)["input_ids"]
    assert back.special_tokens_map == made.special_tokens_map
    assert back.padding_side == made.padding_side
    assert len(back) == len(made)
    assert len(made(CODE)["input_ids"]) < 2 / 3 * len(CODE)  # it has learned these words


@TRAINERS
@pytest.mark.parametrize("kind", [*READ_OTHERWISE, "llama", "bert", "transformer"])
def test_a_trained_tokenizer_is_read_back_as_it_is(train, kind: str, tmp_path: Path) -> None:
    check_trained(train, kind, tmp_path)


@pytest.mark.slow
@TRAINERS
@pytest.mark.parametrize("kind", ALL)
def test_that_holds_for_every_model_type(train, kind: str, tmp_path: Path) -> None:
    if tokenizer_saving.default_config(kind) is None:
        pytest.skip("transformers has no default config of this type")
    check_trained(train, kind, tmp_path)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "a", "x", "def"]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "mistral", "modernbert", "roberta"])
def test_a_given_tokenizer_is_kept_beside_another_model(words, kind: str, tmp_path: Path) -> None:
    kept = tokenizer_saving.savable_tokenizer(words, AutoConfig.for_model(kind))
    back = loaded(kept, kind, tmp_path)
    for text in (PROBE, "the cats", "a Cat x"):
        assert back(text)["input_ids"] == words(text)["input_ids"]
    assert back.special_tokens_map == words.special_tokens_map
    assert back.model_input_names == words.model_input_names


@pytest.mark.parametrize("kind", READ_OTHERWISE)
def test_a_given_tokenizer_that_would_be_read_otherwise_is_refused(words, kind: str) -> None:
    with pytest.raises(ConfigError, match="other ids") as fault:
        tokenizer_saving.savable_tokenizer(words, AutoConfig.for_model(kind))
    assert kind in fault.value.where
    assert "model.architecture" in fault.value.next


def test_settings_that_a_run_changes_are_kept(tmp_path: Path) -> None:
    made = tokenizers.train_bpe(TEXTS, 400, "mistral")
    made.chat_template = "{{ messages[0].content }}"
    made.padding_side, made.model_max_length = "left", 77
    tokenizers.read_as_text(made)
    back = loaded(
        tokenizer_saving.savable_tokenizer(made, AutoConfig.for_model("mistral")),
        "mistral",
        tmp_path,
    )
    assert back.chat_template == made.chat_template
    assert (back.padding_side, back.model_max_length) == ("left", 77)
    assert back.eos_token_id not in back("a <|endoftext|>")["input_ids"]
