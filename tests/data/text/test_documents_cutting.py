from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.data.text.documents import BEFORE_SPACE, NOWHERE, Piece, Rule, at_line, cut
from llmkit.data.text.token_file import TokenEncoder

TOKENIZERS = [
    "tokenizers/gpt2",
    "tokenizers/bert-base-uncased",
    "tokenizers/bert-base-chinese",
    "models/tinystories-656k",
]


@given(
    st.text("ab \n,'é\u0301你。", max_size=200),
    st.sampled_from([BEFORE_SPACE, at_line(["\na"]), NOWHERE]),
    st.integers(1, 20),
    st.integers(1, 30),
)
def test_a_cut_loses_nothing_and_does_not_depend_on_how_the_text_arrives(
    text: str, rule: Rule, size: int, arriving: int
) -> None:
    parts = list(cut([Piece(text, True)], rule, size, 40))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.text) <= 40 for part in parts)
    assert "".join(part.text for part in parts) == text
    arrived = [Piece(text[i : i + arriving], False) for i in range(0, len(text), arriving)]
    assert list(cut([*arrived, Piece("", True)], rule, size, 40)) == parts


def test_a_cut_never_precedes_a_combining_mark_or_an_apostrophe() -> None:
    text = "e\u0301 don't e\u0301x"
    places = [match.start() for match in BEFORE_SPACE.finditer(text)]
    assert places == [text.index(" e\u0301x")]


@pytest.fixture(scope="module", params=TOKENIZERS)
def named(request: pytest.FixtureRequest, shared: Path) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, AutoTokenizer.from_pretrained(shared / request.param)


def test_parts_encode_to_the_ids_of_the_whole_text(
    shared: Path, named: tuple[str, PreTrainedTokenizerFast]
) -> None:
    name, tokenizer = named
    files = [
        shared / "text" / "shakespeare.txt",
        shared / "text" / "tang_poems.txt",
        shared / "text" / "tatoeba-en-zh.tsv",
        *sorted((shared / "text" / "udhr").glob("*.utf-8.txt")),
        *sorted((shared / "text" / "code").glob("**/*.py")),
    ]
    texts = [path.read_bytes().decode()[:50_000] for path in files]
    encoder = TokenEncoder(tokenizer, texts[:3])
    # The tokens of tinystories hold up to five words: only line ends are left to cut at.
    assert encoder.rule is not NOWHERE
    assert (encoder.rule is BEFORE_SPACE) == ("tinystories" not in name)
    for text in texts:
        whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        parts = list(cut([Piece(text, True)], encoder.rule, size=300))
        assert list(chain.from_iterable(encoder.encode(parts))) == whole


def test_a_token_with_a_space_inside_is_never_cut(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    tokenizer.add_tokens(["good morning", "good\nday"])
    rule = TokenEncoder(tokenizer, ["some text"]).rule
    assert rule is not BEFORE_SPACE
    assert not rule.search("good morning good\nday")
