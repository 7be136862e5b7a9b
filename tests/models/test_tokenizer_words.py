"""Words as the masks of whole words see them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import BPEDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from llmkit.models import tokenizer as tokenizers
from tests.jobs import SHARED, needs_shared


def cut(tokenizer, text: str) -> list[str]:
    """The words of a text, by the table."""
    continues, closes = tokenizers.word_edges(tokenizer)
    found: list[list[int]] = []
    for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not found or not continues[number] or closes[found[-1][-1]]:
            found.append([])
        found[-1].append(number)
    return [tokenizer.decode(word) for word in found]


def test_byte_level_words_begin_with_a_space_or_a_mark() -> None:
    trained = tokenizers.train_bpe_with_frame(["no merges at all"], 257 + 4)
    text = "The unaffable café, it's 2024!\nÜber 春眠不覺曉"
    assert cut(trained, text) == [
        "The", " unaffable", " café", ",", " it", "'s", " 2024", "!", "\nÜber", " ", *"春眠不覺曉",
    ]  # fmt: skip


def test_a_mark_at_the_end_of_a_word_closes_it() -> None:
    trained = Tokenizer(BPE(unk_token="?", end_of_word_suffix="</w>"))
    trained.pre_tokenizer, trained.decoder = Whitespace(), BPEDecoder()
    trainer = BpeTrainer(vocab_size=30, special_tokens=["?"], end_of_word_suffix="</w>")
    trained.train_from_iterator(["a tab at the bath"], trainer)
    text = "that bath beat"
    assert cut(PreTrainedTokenizerFast(tokenizer_object=trained), text) == text.split()


def test_special_tokens_are_reported() -> None:
    trained = tokenizers.train_bpe_with_frame(["a b"], 257 + 4)
    special = tokenizers.special_tokens(trained)
    assert special.sum() == 4
    assert special[[trained.cls_token_id, trained.mask_token_id, trained.pad_token_id]].all()


@needs_shared
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tokenizers/bert-base-uncased", "unaffable, he", ["unaffable", ",", "he"]),
        ("tokenizers/gpt2", "unaffable, he", ["unaffable", ",", " he"]),
        ("models/tinystories-656k", "She said hippos, he", ["She", "said", "hippos,", "he"]),
    ],
)
def test_words_of_published_tokenizers(name: str, text: str, expected: list[str]) -> None:
    found = [word.strip() for word in cut(tokenizers.load_tokenizer(str(SHARED / name)), text)]
    assert found == [word.strip() for word in expected]
