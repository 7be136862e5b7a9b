"""Tags of words: schemes, faults, and entities as seqeval reads them."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from seqeval import scheme as schemes
from seqeval.metrics.sequence_labeling import get_entities

from llmkit.data.records.tagging import tags
from llmkit.data.records.tagging.tags import (
    BILOU,
    BIO,
    PLAIN_TAGS,
    TagSet,
    bio_tags,
    scheme_of,
    tag_fault,
)

TYPES = ("PER", "LOC", "AM-TMP")
LETTERS = {"bio": "BI", "bilou": "BILU", "bioes": "BIES"}
SCHEMES = {"bio": BIO, "bilou": BILOU, "bioes": BILOU}


def drawn(letters: str, seed: int, rows: int = 40) -> list[list[str]]:
    """Rows of random tags, which mostly do not follow the scheme."""
    chance = random.Random(seed)
    names = ["O", *(f"{letter}-{kind}" for letter in letters for kind in TYPES[:2])]
    return [chance.choices(names, k=chance.randint(1, 12)) for _ in range(rows)]


def found(known: TagSet, rows: list[list[str]], strict: bool) -> set[tuple[int, str, int, int]]:
    """Entities by row, type, first and last word."""
    starts = np.cumsum([0, *map(len, rows)])
    read = known.entities(tags.flat_tags(known, rows), starts[:-1])
    if strict:
        read = read.chosen(read.is_strict)
    row = np.searchsorted(starts, read.first, side="right") - 1
    return {
        (r, known.types[kind], first - starts[r], end - 1 - starts[r])
        for r, first, end, kind in zip(row, read.first, read.end, read.kind, strict=True)
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("letters", ["bio", "bioes"])
def test_entities_are_read_like_the_default_of_seqeval(letters: str, seed: int) -> None:
    rows = drawn(LETTERS[letters], seed)
    known = tags.tag_set(SCHEMES[letters], {tag for row in rows for tag in row})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            (n, kind, first, last)
            for n, row in enumerate(rows)
            for kind, first, last in get_entities(row)
        }
    assert found(known, rows, strict=False) == theirs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("letters", "scheme"),
    [("bio", schemes.IOB2), ("bilou", schemes.BILOU), ("bioes", schemes.IOBES)],
)
def test_strict_entities_are_those_of_the_strict_mode_of_seqeval(letters, scheme, seed) -> None:
    rows = drawn(LETTERS[letters], seed)
    known = tags.tag_set(SCHEMES[letters], {tag for row in rows for tag in row})
    theirs = {
        (each.sent_id, each.tag, each.start, each.end - 1)
        for row in schemes.Entities(rows, scheme).entities
        for each in row
    }
    assert theirs
    assert found(known, rows, strict=True) == theirs


spans = some.lists(some.tuples(some.integers(1, 3), some.integers(0, 2), some.sampled_from(TYPES)))


@given(spans)
def test_the_tags_of_spans_spell_these_spans_and_follow_the_scheme(parts) -> None:
    placed, word = [], 0
    for length, gap, kind in parts:
        placed.append((word + gap, word + gap + length, kind))
        word += gap + length
    row = list(bio_tags(word + 1, placed))
    known = tags.tag_set(BIO, {"B-PER", "I-LOC", "B-AM-TMP"})
    assert tag_fault(BIO, row) is None
    assert found(known, [row], strict=True) == {
        (0, kind, first, end - 1) for first, end, kind in placed
    }


def test_a_row_without_a_fault_is_read_alike_strictly_and_leniently() -> None:
    for letters, scheme in (("BI", BIO), ("BILU", BILOU)):
        good = [row for seed in range(30) for row in drawn(letters, seed) if not
                tag_fault(scheme, row)]  # fmt: skip
        known = tags.tag_set(scheme, {tag for row in drawn(letters, 0) for tag in row})
        assert len(good) > 50
        assert found(known, good, strict=True) == found(known, good, strict=False)


@pytest.mark.parametrize(
    ("scheme", "row", "word", "said"),
    [
        (BIO, "O I-PER O", 1, "'I-PER' after 'O' continues no entity"),
        (BIO, "I-PER", 0, "'I-PER' at the beginning continues no entity"),
        (BIO, "B-PER I-LOC", 1, "'I-LOC' after 'B-PER'"),
        (BIO, "B-PER U-LOC", 1, "neither O nor a tag with B- and I-"),
        (BIO, "O PER", 1, "'PER' is neither"),
        (BILOU, "B-PER O", 1, "'O' after 'B-PER', which is not ended"),
        (BILOU, "U-PER L-PER", 1, "continues no entity"),
        (BILOU, "O B-PER I-PER", 2, "at the end, which is not ended"),
        (BILOU, "B-PER B-LOC", 1, "which is not ended"),
    ],
)
def test_the_first_tag_that_breaks_the_scheme_is_named(scheme, row, word, said) -> None:
    fault = tag_fault(scheme, row.split())
    assert fault is not None
    assert fault.word == word
    assert said in fault.reason


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        ("O B-PER I-PER", BIO),
        ("O I-PER", BIO),
        ("O B-PER I-PER PER", BIO),  # one odd tag is a fault, not another scheme
        ("O B-X L-X U-X", BILOU),
        ("B M E S", BILOU),
        ("NOUN VERB DET O", PLAIN_TAGS),
        ("PRP$ IN B I -LRB- NN", PLAIN_TAGS),
        ("O", PLAIN_TAGS),
    ],
)
def test_the_scheme_follows_from_most_tags(names: str, scheme: str) -> None:
    assert scheme_of(names.split()) == scheme


def test_the_tags_of_a_model_are_complete_for_each_type_that_occurs() -> None:
    assert tags.tag_set(BIO, {"O", "B-PER", "B-LOC", "I-LOC"}).names == (
        "O", "B-LOC", "I-LOC", "B-PER", "I-PER",
    )  # fmt: skip
    assert tags.tag_set(BILOU, {"S-X", "E-X", "B-X", "O"}).names == ("O", "B-X", "E-X", "S-X")
    assert tags.tag_set(PLAIN_TAGS, {"VERB", "NOUN"}).names == ("NOUN", "VERB")


def test_iob1_becomes_bio() -> None:
    rows = ["I-PER I-PER B-PER O I-LOC", "O I-LOC I-PER", "I-PER"]
    assert tags.is_iob1(row.split() for row in rows)
    assert [" ".join(tags.iob1_as_bio(row.split())) for row in rows] == [
        "B-PER I-PER B-PER O B-LOC", "O B-LOC B-PER", "B-PER",
    ]  # fmt: skip
    assert not tags.is_iob1(row.split() for row in ["B-PER I-PER", "O I-PER"])
    assert not tags.is_iob1([["O", "O"]])


def test_numbers_are_tags_only_where_a_file_names_them() -> None:
    known = TagSet(BIO, ("O", "B-PER", "I-PER"), from_file=True)
    assert known.unknown(("O", "2", "3", "B-LOC")) == ["3", "B-LOC"]
    assert TagSet(BIO, known.names).unknown(("O", "2")) == ["2"]
