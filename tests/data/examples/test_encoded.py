import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.data.examples.encoded import UNLABELLED, Encoded, Encoder, LabelledTable, targets
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels
from llmkit.errors import DataError


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer in BERT's manner that knows ten words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(vocabulary)}, "[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def single(texts: list[tuple[str, ...]], numbers: list[int]) -> LabelledTable:
    labels = Labels(SINGLE, tuple(map(str, range(max(numbers) + 1))))
    return LabelledTable(
        texts, targets(labels, numbers), labels, [("a", n) for n in range(len(texts))]
    )


TEXTS = st.lists(
    st.one_of(
        st.tuples(st.text("ab k", max_size=30)),
        st.tuples(st.text("cd ", max_size=20), st.text("ef k", max_size=20)),
    ),
    min_size=1,
    max_size=8,
)


@given(TEXTS, st.integers(4, 12))
def test_ids_are_those_of_the_tokenizer_with_truncation(
    words: PreTrainedTokenizerFast, texts: list[tuple[str, ...]], max_length: int
) -> None:
    encoded = Encoder(words, max_length).encode(texts)
    for row, text in enumerate(texts):
        assert_equal(words, encoded, row, text, max_length)
        assert encoded.uncut[row] == len(words(*[[each] for each in text])["input_ids"][0])


def assert_equal(
    tokenizer: PreTrainedTokenizerFast,
    encoded: Encoded,
    row: int,
    text: tuple[str, ...],
    max_length: int,
) -> None:
    # Given alone, and not as lists, transformers takes an empty second text for none.
    lists = [[each] for each in text]
    expected = tokenizer(*lists, truncation=True, max_length=max_length, return_tensors="pt")
    batch = encoded.batch([row])
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("name", ["bert-base-uncased", "gpt2"])
def test_ids_are_those_of_real_tokenizers(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lines = (shared / "classify" / "subj" / "subj.all").read_text("windows-1252").split("\n")
    texts = [(line,) for line in lines[:300]] + list(itertools.pairwise(lines[:50]))
    encoded = Encoder(tokenizer, 24).encode(texts)
    assert (encoded.uncut > 24).sum() > 50
    for row, text in enumerate(texts):
        assert_equal(tokenizer, encoded, row, text, 24)
    assert ("token_type_ids" in encoded.batch([0])) == (name == "bert-base-uncased")


def test_the_tokenizer_itself_stays_as_it_is(words: PreTrainedTokenizerFast) -> None:
    before = words.backend_tokenizer.to_str()
    Encoder(words, 4).encode([("a b c d e f",)])
    assert words.backend_tokenizer.to_str() == before


def test_a_batch_is_padded_to_its_longest_row(words: PreTrainedTokenizerFast) -> None:
    encoded = single([("a b c",), ("a",), ("a b c d e",)], [0, 1, 0]).examples(words, 16)
    assert encoded.lengths.tolist() == [5, 3, 7]
    batch = encoded.batch([1, 0])
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0, 0], [2, 4, 5, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert encoded.longest_first().tolist() == [2, 0, 1]
    assert (encoded.count([1, 0]), encoded.count([-1, 2, -1])) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        (SINGLE, [1, 0], [1, 0, UNLABELLED]),
        (MULTI, [[0, 2], []], [[1, 0, 1], [0, 0, 0], [np.nan] * 3]),
        (REGRESSION, [0.5, -2.0], [0.5, -2.0, np.nan]),
    ],
)
def test_row_minus_one_has_no_label_and_attends_to_something(
    words: PreTrainedTokenizerFast, kind: str, rows: list[object], expected: list[object]
) -> None:
    labels = Labels(kind, ("x", "y", "z"))
    table = LabelledTable([("a",), ("b",)], targets(labels, rows), labels, [("f", 1), ("f", 2)])
    batch = table.examples(words, 8).batch([0, 1, -1])
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array(expected))
    assert batch["labels"].dtype == (torch.int64 if kind == SINGLE else torch.float32)
    assert batch["input_ids"][2].tolist() == [0, 0, 0]
    assert batch["attention_mask"][2].tolist() == [1, 0, 0]
    assert batch["token_type_ids"][2].tolist() == [0, 0, 0]


def test_a_text_without_tokens_makes_a_batch(words: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")), pad_token="[UNK]"
    )
    encoded = Encoder(bare, 4).encode([("",)])
    assert encoded.batch([0])["attention_mask"].tolist() == [[1]]
    assert "labels" not in encoded.batch([0])


def test_a_tokenizer_without_padding_is_refused(words: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    with pytest.raises(DataError, match="padding"):
        Encoder(bare, 4)


def test_percentiles_are_of_whole_texts_and_the_cut_is_counted(
    words: PreTrainedTokenizerFast,
) -> None:
    texts = [(" ".join("a" * n),) for n in range(1, 101)]
    report = Encoder(words, 52).encode(texts).length_report()
    assert report["percentiles"] == {"50": 52, "90": 92, "95": 97, "99": 101, "100": 102}
    assert (report["truncated"], report["truncated_share"]) == (50, 0.5)


def test_a_fingerprint_is_of_texts_and_labels_in_order() -> None:
    tables = [
        single([("ab", "c"), ("d",)], [0, 1]),
        single([("a", "bc"), ("d",)], [0, 1]),
        single([("ab", "c"), ("d",)], [1, 1]),
        single([("d",), ("ab", "c")], [0, 1]),
    ]
    assert len({table.fingerprint for table in tables}) == 4
    assert tables[0].fingerprint == single([("ab", "c"), ("d",)], [0, 1]).fingerprint


def test_a_part_keeps_rows_together_with_their_labels_and_places() -> None:
    part = single([("a",), ("b",), ("c",)], [0, 1, 2]).part(np.array([True, False, True]))
    assert (part.texts, part.targets.tolist()) == ([("a",), ("c",)], [0, 2])
    assert part.places == [("a", 0), ("a", 2)]
