"""The texts that models are compared on are awkward, many, and the same each time."""

from __future__ import annotations

import unicodedata

from llmkit.export.texts import COUNT, probe_texts
from llmkit.models import tokenizer as tokenizers


def test_the_texts_are_repeated_and_hold_what_tokenizers_differ_in() -> None:
    tokenizer = tokenizers.train_bpe(["some text to learn a few merges from"] * 3, 300)
    texts = probe_texts(tokenizer)
    assert texts == probe_texts(tokenizer)
    assert len(texts) == COUNT
    assert "" in texts
    whole = "".join(texts)
    assert tokenizers.END_OF_TEXT in whole
    kinds = {unicodedata.category(letter) for letter in whole}
    assert {"Lu", "Ll", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Zs", "Zl", "Cc", "Cf", "Sm"} <= kinds
    scripts = {unicodedata.name(letter, "-").split()[0] for letter in whole}
    assert {"CJK", "HIRAGANA", "HANGUL", "ARABIC", "HEBREW", "DEVANAGARI", "THAI"} <= scripts
