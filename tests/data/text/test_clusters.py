"""Clusters of words: the cosine of TF-IDF vectors, exact on any machine, in a file that returns."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.text.clusters import DOMAINS, Clusters, read_clusters, words_of
from llmkit.errors import DataError


def clusters(seed: int = 0, names: tuple[str, ...] = ("cat", "dog", "月", "明月", "(")) -> Clusters:
    draw = np.random.default_rng(seed)
    centroids = np.rint(draw.random((3, len(names))) * 2**20) / 2**20
    idf = np.rint(draw.random(len(names)) * 2**8) / 2**6
    return Clusters(names, idf, centroids, draw.random(3) / 8, (("cat",), ("dog",), ("月",)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat's 42 ÉTÉS", ["the", "cat", "'", "s", "4", "2", "étés"]),
        ("床前明月光", ["床", "前", "明", "月", "光", "床前", "前明", "明月", "月光"]),
        ("夜,wind夜", ["夜", ",", "wind", "夜"]),
        ("def f(x_1):", ["def", "f", "(", "x", "_", "1", ")", ":"]),
        (" \n\t", []),
    ],
)
def test_words_are_found_with_and_without_spaces(text: str, found: list[str]) -> None:
    assert words_of(text) == found


@given(st.lists(st.sampled_from(["cat", "dog", "bird", "明月", "(", "7"]), max_size=30))
def test_similarity_is_the_cosine_of_tf_idf(parts: list[str]) -> None:
    made, text = clusters(), " ".join(parts)
    counts = Counter(words_of(text))
    own = [round(math.sqrt(counts[w]) * 64) / 64 * i
           for w, i in zip(made.vocabulary, made.idf.tolist(), strict=True)]  # fmt: skip
    length = math.sqrt(math.fsum(x * x for x in own)) or 1
    expected = [math.fsum(x * y for x, y in zip(own, row, strict=True)) / length
                for row in made.centroids.tolist()]  # fmt: skip
    assert made.similarities([text])[0].tolist() == expected


def test_a_text_without_a_known_word_has_a_cluster_too() -> None:
    made = clusters()
    found = made.similarities(["bird", ""])
    assert not found.any()
    assert made.numbers(found).tolist() == [int(made.prices.argmax())] * 2


@given(st.permutations(range(5)), st.lists(st.text("catdog 明月(", max_size=40), min_size=1))
def test_the_order_of_sums_changes_no_bit(order: list[int], texts: list[str]) -> None:
    made = clusters()
    moved = Clusters(
        tuple(made.vocabulary[n] for n in order),
        made.idf[order],
        made.centroids[:, order],
        made.prices,
        made.telling,
    )
    expected = made.similarities(texts)
    assert np.array_equal(moved.similarities(texts), expected)
    alone = np.concatenate([made.similarities([text]) for text in texts])
    assert np.array_equal(alone, expected)


def test_the_file_returns_the_same_clusters(tmp_path: Path) -> None:
    made = clusters()
    made.write(tmp_path)
    found = read_clusters(tmp_path)
    assert found is not None
    assert found.fingerprint == made.fingerprint
    texts = ["a cat, a dog", "明月 (cat)"]
    assert np.array_equal(found.similarities(texts), made.similarities(texts))
    assert np.array_equal(found.prices, made.prices)
    assert found.telling == made.telling
    assert clusters(1).fingerprint != made.fingerprint


def test_a_missing_file_has_no_clusters_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_clusters(tmp_path) is None
    for damage in ("", "{}", "[]", '{"format": 1, "vocabulary": 3}'):
        (tmp_path / DOMAINS).write_text(damage)
        with pytest.raises(DataError, match="damaged"):
            read_clusters(tmp_path)
    clusters().write(tmp_path)
    whole = json.loads((tmp_path / DOMAINS).read_text())
    for key in ("prices", "idf", "telling", "vocabulary", "centroids"):
        for part in (whole[key][1:], [*whole[key], whole[key][0]]):
            (tmp_path / DOMAINS).write_text(json.dumps({**whole, key: part}))
            with pytest.raises(DataError, match="damaged"):
                read_clusters(tmp_path)
    (tmp_path / DOMAINS).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="newer llmkit"):
        read_clusters(tmp_path)
