"""Copies are found, the earliest is kept, and nothing else goes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.cleaning.comparing import compared_words, runs_of_words
from llmkit.data.cleaning.passes.duplicates import EXACT_COPY, NEAR_COPY, Links, find_copies
from llmkit.data.cleaning.passes.signatures import Signatures, estimated_overlap, signatures_of
from tests.dirty import plays, poems, programs, prose, second_corpora, verse, with_other_words

PAIRS = 30
LIMIT = 0.6


def links_of(texts: Sequence[str], held_out: int = 0, limit: float | None = LIMIT) -> Links:
    return find_copies(
        signatures_of(texts, limit is not None), True, limit, held_out, lambda n: None
    )


def true_overlap(one: str, other: str) -> float:
    a, b = (set(runs_of_words(compared_words(text))) for text in (one, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("make", [prose, verse, plays])
def test_copies_with_some_changed_words_are_found(make: type) -> None:
    chance, texts = random.Random(0), make(PAIRS)
    copies = [with_other_words(text, 0.05, chance) for text in texts]
    found = links_of([*texts, *copies])
    assert np.count_nonzero(found.kinds[PAIRS:] == NEAR_COPY) >= 0.95 * PAIRS
    assert not found.kinds[:PAIRS].any()
    linked = np.flatnonzero(found.kinds)
    assert (found.copied[linked] == linked - PAIRS).all()


@pytest.mark.parametrize(("kind", "documents"), [*second_corpora(150)])
def test_no_clean_document_is_taken_for_a_copy(kind: str, documents: list[str]) -> None:
    assert not links_of(documents).kinds.any()


def test_another_case_or_spacing_is_a_near_copy_and_the_same_text_an_exact_one() -> None:
    [text] = prose(1)
    found = links_of([text, text.upper().replace(" ", "  "), text])
    assert found.kinds.tolist() == [0, NEAR_COPY, EXACT_COPY]
    assert found.kept().tolist() == [0, 0, 0]


def test_a_short_document_is_a_copy_only_if_it_is_equal() -> None:
    found = links_of(["Yes, sir.", "yes sir", "}", ")", "Yes, sir.", "}"])
    assert found.kinds.tolist() == [0, 0, 0, 0, EXACT_COPY, EXACT_COPY]


def test_characters_of_chinese_verse_are_compared_as_words() -> None:
    texts = poems(PAIRS)
    titled = [f"題目{number}\n{text}" for number, text in enumerate(texts)]
    assert np.count_nonzero(links_of([*texts, *titled]).kinds == NEAR_COPY) >= 0.95 * PAIRS


def test_copies_of_a_document_that_is_not_the_first_are_one_cluster() -> None:
    chance, [text] = random.Random(2), prose(1, words=150)
    copies = [with_other_words(text, 0.05, chance) for _ in range(20)]
    # Two copies are less alike than each is like the original, which comes last.
    assert true_overlap(*copies[:2]) < LIMIT < true_overlap(copies[0], text)
    found = links_of([*copies, text])
    near = np.flatnonzero(found.kinds)
    assert np.count_nonzero(found.kept() == 0) >= 18
    assert (found.estimates[near] >= LIMIT).all()
    assert (found.kinds[found.kept()] == 0).all()


ORIGINALS = prose(4, words=30)
WRITTEN = (str, str.upper, str.title, lambda text: text.replace(" ", "\n"))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(WRITTEN)), min_size=1, max_size=12))
@settings(max_examples=30)
def test_a_cluster_has_one_survivor_the_earliest(given: list[tuple[int, Any]]) -> None:
    found = links_of([write(ORIGINALS[number]) for number, write in given])
    numbers = [number for number, _ in given]
    assert found.kept().tolist() == [numbers.index(number) for number in numbers]
    assert (found.kinds[found.kept()] == 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_what_is_kept_holds_no_further_copies(seed: int) -> None:
    chance = random.Random(seed)
    texts = prose(20, seed, words=60)
    for _ in range(120):
        texts.append(with_other_words(chance.choice(texts), chance.choice([0.02, 0.08]), chance))
    found = links_of(texts)
    assert found.kinds.any()
    left = [text for text, kind in zip(texts, found.kinds, strict=True) if not kind]
    assert not links_of(left).kinds.any()


def test_held_out_documents_stay_and_what_is_like_them_goes() -> None:
    held_out = prose(4)
    training = [held_out[1].upper(), *prose(3, seed=9), held_out[2]]
    found = links_of([*held_out, held_out[0], *training], held_out=5)
    assert not found.kinds[:5].any()
    assert found.kinds[5:].tolist() == [NEAR_COPY, 0, 0, 0, EXACT_COPY]
    assert found.kept()[[5, 9]].tolist() == [1, 2]


def test_the_estimate_is_near_the_true_overlap() -> None:
    chance, texts = random.Random(3), prose(60)
    shares = [chance.choice([0.01, 0.05, 0.1, 0.2]) for _ in texts]
    copies = [with_other_words(*each, chance) for each in zip(texts, shares, strict=True)]
    values = signatures_of([*texts, *copies], True).values
    places = np.arange(60)
    estimates = estimated_overlap(values, places, places + 60)
    true = np.array([true_overlap(*each) for each in zip(texts, copies, strict=True)])
    errors = estimates - true
    assert (abs(errors) < 4 * np.sqrt(true * (1 - true) / 120) + 1e-6).all()
    assert abs(errors.mean()) < 0.02


def test_signatures_in_a_mapped_file_are_compared_as_those_in_memory(tmp_path: Path) -> None:
    chance, texts = random.Random(2), prose(40)
    texts += [with_other_words(text, 0.04, chance) for text in texts[::2]]
    found = signatures_of(texts, True)
    found.values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.uint32, "r", shape=found.values.shape)
    links = [
        find_copies(each, True, LIMIT, 4, lambda n: None)
        for each in (found, Signatures(found.hashes, mapped, found.comparable))
    ]
    assert np.count_nonzero(links[0].kinds) > 15
    for name in ("roots", "copied", "kinds", "estimates"):
        assert (getattr(links[0], name) == getattr(links[1], name)).all()


def test_values_do_not_depend_on_the_company() -> None:
    texts = [*prose(5), *programs(5), "short"]
    together = signatures_of(texts, True)
    for number, text in enumerate(texts):
        alone = signatures_of([text], True)
        assert (alone.values[0] == together.values[number]).all()
        assert (alone.hashes[0] == together.hashes[number]).all()


def test_no_documents_have_no_copies() -> None:
    assert len(links_of([]).kinds) == 0
    assert links_of(["a", "a"], limit=None).kinds.tolist() == [0, EXACT_COPY]
