"""Sources and targets are encoded as transformers encodes them, and cut with their end tokens."""

from __future__ import annotations

import pytest

from llmkit.data.examples.pair_tokenizer import PairTokenizer
from tests import pairs

TOKENIZERS = {"t5": pairs.t5_tokenizer, "bart": pairs.bart_tokenizer}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_are_those_of_the_tokenizer_with_the_prefix(kind: str) -> None:
    own = TOKENIZERS[kind]()
    made = PairTokenizer(own, "translate: ").sources(["one two", "three"], None)
    for row, text in enumerate(("translate: one two", "translate: three")):
        ids = made.ids[made.starts[row] : made.starts[row + 1]].tolist()
        assert ids == own(text)["input_ids"]
    target = PairTokenizer(own, "translate: ").targets(["fünf"], None)
    assert target.ids.tolist() == own(text_target="fünf")["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_long_texts_are_counted_and_keep_their_end(kind: str) -> None:
    own = TOKENIZERS[kind]()
    made = PairTokenizer(own).targets(["one two three four", "one"], 4)
    assert made.lengths.max() == 4
    assert made.ids[3] == own.eos_token_id
    assert made.uncut[0] == len(own("one two three four")["input_ids"])
    assert made.length_report()["truncated"] == int((made.uncut > 4).sum())


def test_names_of_control_tokens_are_text_and_are_counted() -> None:
    own = pairs.bart_tokenizer()
    encoder = PairTokenizer(own)
    ids = encoder.sources(["one </s> two", "one"], None).ids.tolist()
    assert ids.count(own.eos_token_id) == 2
    assert own.decode(ids[1:-4]).startswith("one </s>")
    assert "1 text with the name of a control token (</s>)" in str(encoder.named.warning("text"))
