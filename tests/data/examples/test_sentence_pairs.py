"""Pairs of segments: all text once, half of the pairs neighbours, and the same pairs again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.examples.blocks import UNSCORED, Vocabulary
from llmkit.data.examples.sentence_pairs import (
    NEXT,
    OTHER,
    SentenceMarks,
    SentencePairs,
    sentence_marks,
)
from llmkit.models import tokenizer as tokenizers
from tests.jobs import SHARED, needs_shared, token_file

B, E, MASK, PAD, STOP = 0, 1, 2, 3, 4
SPECIAL = np.isin(np.arange(300), [B, E, MASK, PAD])
NONE = np.zeros(300, bool)
MARKS = SentenceMarks(np.arange(300) == STOP, NONE, SPECIAL, NONE)

DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(5, 299), max_size=12), min_size=1, max_size=6),
    min_size=2,
    max_size=6,
).map(lambda found: [[t for words in one for t in (*words, STOP)] for one in found])
"""Documents of sentences that end with STOP."""


def pairs(documents, size=16, closing=E, seed="0") -> SentencePairs:
    vocabulary = Vocabulary(MASK, PAD, SPECIAL)
    file = token_file(documents, B, closing)
    return SentencePairs(file, size, False, 0.3, vocabulary, seed, marks=MARKS)


def segments(made: SentencePairs, rows) -> list[tuple[list[int], list[int], int]]:
    """The first and the second segment of each row, unmasked, and its label."""
    batch, closing = made.batch(rows), made.tokens.closing
    ids = batch["input_ids"].numpy().copy()
    row, slot = np.nonzero(batch["targets"].numpy() != UNSCORED)
    ids[row, batch["places"].numpy()[row, slot]] = batch["targets"].numpy()[row, slot]
    found = []
    for number, each in enumerate(ids):
        inside = each
        if "attention_mask" in batch:
            inside = each[batch["attention_mask"][number].bool().numpy()]
        assert inside[0] == B
        types = batch["token_type_ids"][number].numpy()
        assert not types[len(inside) :].any()
        types = types[: len(inside)]
        assert (np.diff(types) >= 0).all()
        first, second = inside[types == 0], inside[types == 1]
        assert first[-1] == closing
        assert len(second) == 0 or second[-1] == closing
        label = int(batch["next_sentence"][number])
        found.append((first[1:-1].tolist(), second[:-1].tolist(), label))
    return found


def passages(documents, size) -> list[list[list[int]]]:
    """The sentences of each passage, computed one token after another."""
    room, found = size - 3, []
    for document in documents:
        sentences, current = list[list[int]](), list[int]()
        for token in document:
            current.append(token)
            if token == STOP:
                sentences.append(current)
                current = []
        parts = list[list[int]]()
        for sentence in sentences:
            n = -(-len(sentence) // max(1, room // 2))
            cuts = [each * len(sentence) // n for each in range(n + 1)]
            parts += [sentence[a:b] for a, b in itertools.pairwise(cuts)]
        passage = list[list[int]]()
        for part in parts:
            if passage and sum(map(len, passage)) + len(part) > room:
                found.append(passage)
                passage = []
            passage.append(part)
        found.append(passage)
    return found


@settings(max_examples=30)
@given(DOCUMENTS, st.integers(6, 30), st.sampled_from([B, E]), st.integers(0, 3))
def test_a_row_is_its_passage_or_its_first_part_and_sentences_from_elsewhere(
    documents, size: int, closing: int, epoch: int
) -> None:
    made, expected = pairs(documents, size, closing), passages(documents, size)
    assert len(made) == len(expected)
    rows = range(epoch * len(made), (epoch + 1) * len(made))
    for (first, second, label), passage in zip(segments(made, rows), expected, strict=True):
        whole = [*itertools.chain(*passage)]
        if len(passage) == 1:
            assert (first, second, label) == (whole, [], UNSCORED)
            continue
        splits = [[*itertools.chain(*passage[:n])] for n in range(1, len(passage))]
        assert first in splits
        assert second
        assert label in (NEXT, OTHER)
        assert len(first) + len(second) <= size - 3
        if label == NEXT:
            assert first + second == whole
        else:
            text = ",".join(map(str, second))
            assert any(text in ",".join(map(str, each)) for each in documents)


def test_sentences_from_elsewhere_are_those_of_another_document() -> None:
    documents = [[n, n, STOP] * 9 for n in range(5, 25)]
    made = pairs(documents, 20)
    rows = segments(made, range(60 * len(made)))
    own = {label: {first[0] == second[0] for first, second, each in rows if each == label}
           for label in (NEXT, OTHER)}  # fmt: skip
    assert own == {NEXT: {True}, OTHER: {False}}
    seen = {second[0] for _, second, label in rows if label == OTHER}
    assert seen == set(range(5, 25))


def test_half_of_the_pairs_are_neighbours_and_every_split_is_as_likely() -> None:
    documents = [[5, 6, STOP] * 5 for _ in range(4)]
    made = pairs(documents, 18)
    rows = segments(made, range(4000))
    share = np.mean([label == NEXT for _, _, label in rows])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 4000)
    splits = np.bincount([len(first) // 3 for first, _, _ in rows])[1:]
    assert len(splits) == 4
    assert (np.abs(splits - 1000) < 4 * np.sqrt(1000)).all()


def test_the_only_document_is_paired_with_its_own_passages() -> None:
    text = [token for n in range(5, 45) for token in (n, STOP)]
    made = pairs([text], 11)
    for first, second, label in segments(made, range(40 * len(made))):
        follows = first[-2] + 1 == second[0]
        assert follows or label == OTHER
    assert made.pairs(range(len(made))) == len(made)
    assert pairs([[5, STOP, 6, STOP]], 16).pairs([0]) == 0  # no other passage


@settings(max_examples=30)
@given(DOCUMENTS, st.integers(6, 30), st.integers(0, 99))
def test_a_row_does_not_depend_on_its_batch_and_is_counted(documents, size: int, first) -> None:
    made = pairs(documents, size)
    rows = [first, -1, first + 1, first + len(made)]
    together = made.batch(rows)
    for place, row in enumerate(rows):
        alone = made.batch([row])
        for name, value in alone.items():
            whole = together.get(name)
            if whole is not None:
                assert (value[0] == whole[place]).all(), name
    assert made.count(rows) == int((together["targets"] != UNSCORED).sum())
    assert made.pairs(rows) == int((together["next_sentence"] != UNSCORED).sum())


def sentences(tokenizer, text: str) -> list[str]:
    """The sentences that the marks of a tokenizer divide a text into."""
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    begins = [0, *(np.flatnonzero(sentence_marks(tokenizer).begin(ids[:-1], ids[1:])) + 1)]
    parts = np.split(ids, begins[1:])
    return [tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts]


TEXT = 'It costs 3.50. "Really?" she said.\nYes\n\nIt does! 你好。再见'


def test_sentences_end_at_full_stops_and_line_breaks() -> None:
    tokenizer = tokenizers.train_bpe_with_frame([TEXT] * 3, 500)
    assert sentences(tokenizer, TEXT) == [
        "It costs 3.50.", ' "Really?"', " she said.\n", "Yes\n\n", "It does!", " 你好。", "再见"
    ]  # fmt: skip


@needs_shared
def test_a_tokenizer_without_line_breaks_has_full_stops() -> None:
    tokenizer = tokenizers.load_tokenizer(str(SHARED / "tokenizers" / "bert-base-uncased"))
    assert sentences(tokenizer, "He left. She stayed!\nWhy?") == ["he left.", "she stayed!", "why?"]


@pytest.mark.parametrize("row", [-2, -9])
def test_a_row_below_padding_is_refused(row: int) -> None:
    with pytest.raises(IndexError):
        pairs([[5, STOP] * 9] * 2).batch([row])
