"""A tokenizer gets the name of llama.cpp's rule only where it has that rule; others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gguf import Keys, TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmkit.errors import ConfigError
from llmkit.export.gguf.vocabulary import GgufVocabulary, vocabulary_of
from llmkit.models import tokenizer as tokenizers

from .conftest import END, TEXTS, trained, wrapped

RULES = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def found(tokenizer: PreTrainedTokenizerFast, size: int = 704) -> GgufVocabulary:
    return vocabulary_of(tokenizer, size, [0], "it")


def changed(tokenizer: PreTrainedTokenizerFast, *path: Any, to: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with one value of its JSON changed."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return wrapped(Tokenizer.from_str(json.dumps(content)))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_found_by_its_structure(rule: str) -> None:
    assert found(wrapped(trained(rule, ignore_merges=rule == "llama-bpe"))).pre == rule


def test_what_llmkit_trains_can_be_exported() -> None:
    assert found(tokenizers.train_bpe(TEXTS, 700)).pre == "gpt-2"
    of_qwen = found(tokenizers.train_bpe(TEXTS, 700, "qwen2"))
    assert (of_qwen.pre, of_qwen.normalizes) == ("qwen2", True)


def test_ids_tokens_types_and_merges_are_those_of_the_tokenizer() -> None:
    backend = trained("gpt-2")
    backend.add_tokens([AddedToken("word", normalized=False)])
    backend.add_special_tokens(["<|turn|>"])
    tokenizer = wrapped(backend)
    made = found(tokenizer, 710)
    assert len(made.tokens) == len(made.types) == 710
    for token, id in tokenizer.get_vocab().items():
        assert made.tokens[id] == token
    kinds = dict(zip(made.tokens, made.types, strict=True))
    assert kinds[END] == kinds["<|turn|>"] == TokenType.CONTROL
    assert kinds["word"] == TokenType.USER_DEFINED
    assert made.tokens[-1] == "[PAD709]"
    assert kinds["[PAD709]"] == TokenType.UNUSED
    assert kinds["a"] == TokenType.NORMAL
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert list(made.merges) == [" ".join(pair) for pair in merges]


def test_special_ids_the_frame_and_the_chat_template_are_kept() -> None:
    backend = trained("gpt-2")
    backend.add_special_tokens(["<s>", "<|turn|>"])
    first = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", first)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=END, chat_template="{{ messages }}"
    )
    end_of_turn = backend.token_to_id("<|turn|>")
    keys = vocabulary_of(tokenizer, 704, [0, end_of_turn], "it").metadata()
    assert keys[Keys.Tokenizer.BOS_ID] == first
    assert keys[Keys.Tokenizer.EOS_ID] == 0
    assert keys[Keys.Tokenizer.EOT_ID] == end_of_turn
    assert keys[Keys.Tokenizer.ADD_BOS] is True
    assert keys[Keys.Tokenizer.ADD_EOS] is False
    assert keys[Keys.Tokenizer.CHAT_TEMPLATE] == "{{ messages }}"


def plain(**settings: Any) -> PreTrainedTokenizerFast:
    return wrapped(trained("gpt-2", **settings))


def with_token(**marks: bool) -> PreTrainedTokenizerFast:
    backend = trained("gpt-2")
    backend.add_special_tokens([AddedToken("<mask>", **marks)])
    return wrapped(backend)


def with_processor(single: str) -> PreTrainedTokenizerFast:
    backend = trained("gpt-2")
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(END, 0)])
    return wrapped(backend)


def without_a_byte() -> PreTrainedTokenizerFast:
    tokenizer = plain()
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    vocabulary["!!!!!!"] = vocabulary.pop("\u0100")
    return changed(tokenizer, "model", "vocab", to=vocabulary)


def without_an_end() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=trained("gpt-2"))


def words(kind: Any) -> PreTrainedTokenizerFast:
    return wrapped(Tokenizer(kind({END: 0, "a": 1}, unk_token="a")))


def with_normalizer(normalizer: Any) -> PreTrainedTokenizerFast:
    backend = trained("gpt-2")
    backend.normalizer = normalizer
    return wrapped(backend)


def split_by(*steps: Any) -> PreTrainedTokenizerFast:
    backend = trained("gpt-2")
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return wrapped(backend)


LEVEL = pre_tokenizers.ByteLevel
REFUSED: dict[str, Any] = {
    "not byte-level BPE, but WordPiece": lambda: words(models.WordPiece),
    "not byte-level BPE, but WordLevel": lambda: words(models.WordLevel),
    "BPE of characters": lambda: changed(plain(), "model", "byte_fallback", to=True),
    "normalizer NFKC": lambda: with_normalizer(normalizers.NFKC()),
    "normalizer Sequence": lambda: with_normalizer(
        normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    ),
    "does not split text by its rule, .*Whitespace": lambda: split_by(pre_tokenizers.Whitespace()),
    "does not split text by its rule, .*prefix_space": lambda: split_by(
        LEVEL(add_prefix_space=True)
    ),
    "does not split text by its rule, .*Digits": lambda: split_by(
        pre_tokenizers.Digits(individual_digits=False), LEVEL(add_prefix_space=False)
    ),
    "does not split text by its rule, .*Removed": lambda: split_by(
        pre_tokenizers.Split("a", "removed"), LEVEL(add_prefix_space=False, use_regex=False)
    ),
    "does not split text by its rule, .*use_regex": lambda: split_by(
        LEVEL(add_prefix_space=False, use_regex=False)
    ),
    "end_of_word_suffix": lambda: changed(plain(), "model", "end_of_word_suffix", to="!"),
    "no merges": lambda: changed(plain(), "model", "merges", to=[]),
    "1 of the 256 bytes": without_a_byte,
    "lstrip": lambda: with_token(lstrip=True),
    "single_word": lambda: with_token(single_word=True),
    "no end-of-text token": without_an_end,
    "adds other tokens": lambda: with_processor(f"{END} {END} $A"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        found(REFUSED[reason]())


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused() -> None:
    with pytest.raises(ConfigError, match="ids up to 699, and the model has 500 embeddings"):
        found(plain(), 500)


def test_a_word_that_its_merges_do_not_make_is_refused_where_llama_cpp_looks_for_words() -> None:
    tokenizer = wrapped(trained("llama-bpe"))
    assert found(tokenizer).pre == "llama-bpe"  # merges make every word of a trained BPE
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = {**content["vocab"], "zqzqzq": 700}
    with pytest.raises(ConfigError, match="'zqzqzq' is not what its merges make"):
        found(changed(tokenizer, "model", "vocab", to=vocabulary))
