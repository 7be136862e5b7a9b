import pytest
from tokenizers import normalizers

from llmkit.errors import ConfigError
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model

TEXTS = ["the cat sat on the mat and sang to the moon. " * 20, "0123456789 words of English " * 20]
OTHERS = ["ein ganz anderer Text, der von Katzen und Hunden handelt. " * 40]


def saved(directory, texts, change=lambda tokenizer: None):
    tokenizer = tokenizers.train_bpe(texts, 300)
    change(tokenizer)
    tokenizer.save_pretrained(directory)
    (directory / "model.safetensors").touch()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return str(directory)


def test_a_tokenizer_of_the_same_size_with_other_tokens_is_refused(tmp_path) -> None:
    own, other = saved(tmp_path / "own", TEXTS), saved(tmp_path / "other", OTHERS)
    with pytest.raises(ConfigError, match="ids mean other tokens"):
        _ = open_model(own, None, other).tokenizer


def test_the_same_vocabulary_that_splits_text_otherwise_is_refused(tmp_path) -> None:
    def lower(tokenizer) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    own, other = saved(tmp_path / "own", TEXTS), saved(tmp_path / "other", TEXTS, lower)
    with pytest.raises(ConfigError, match="splits text differently"):
        _ = open_model(own, None, other).tokenizer


def test_a_copy_with_added_tokens_belongs_to_the_model(tmp_path) -> None:
    own = saved(tmp_path / "own", TEXTS)
    other = saved(tmp_path / "other", TEXTS, lambda each: each.add_tokens(["<|user|>"]))
    assert len(open_model(own, None, other).tokenizer) == len(open_model(own).tokenizer) + 1
