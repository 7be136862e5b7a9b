"""Balanced k-means: sizes within their bounds, the best assignment within them, the same again."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from llmkit.data.text.clustering import BOUNDS, TELLING, bounded_prices, fit_clusters

TOPICS = {
    "code": "def return self import for in range print lambda ( ) : = [ ]".split(),
    "sea": "wave wind sail ship harbour storm tide the and of , .".split(),
    "poem": list("床前明月光疑是地上霜舉頭望"),
}


def texts_of(counts: dict[str, int], seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts and their topics, in random order."""
    draw = random.Random(seed)
    made = [(" ".join(draw.choices(TOPICS[name], k=draw.randint(5, 30))), name)
            for name, count in counts.items() for _ in range(count)]  # fmt: skip
    draw.shuffle(made)
    texts, topics = zip(*made, strict=True)
    return list(texts), list(topics)


def sizes_of(texts: list[str]) -> np.ndarray:
    return np.array([len(text.encode()) for text in texts], float)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(40, 200), st.floats(0, 3))
@settings(max_examples=60)
def test_sizes_lie_within_the_bounds(seed: int, n: int, texts: int, lean: float) -> None:
    """Whatever cluster all texts lean to, but for the size of one text."""
    draw = np.random.default_rng(seed)
    similarities = draw.random((texts, n)) + lean * np.eye(n)[0]
    sizes = draw.integers(1, 20, texts).astype(float)
    prices = bounded_prices(similarities, sizes, np.zeros(n))
    found = np.bincount((similarities + prices).argmax(axis=1), sizes, n)
    mean = sizes.sum() / n
    assert found.min() >= BOUNDS[0] * mean - sizes.max()
    assert found.max() <= BOUNDS[1] * mean + sizes.max()


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=30)
def test_no_other_assignment_of_these_sizes_is_more_similar(seed: int, n: int) -> None:
    similarities = np.random.default_rng(seed).random((60, n))
    similarities[:, 0] += 0.7
    prices = bounded_prices(similarities, np.ones(60), np.zeros(n))
    numbers = (similarities + prices).argmax(axis=1)
    places = np.repeat(np.arange(n), np.bincount(numbers, minlength=n))
    rows, columns = linear_sum_assignment(-similarities[:, places])
    best = similarities[rows, places[columns]].sum()
    assert similarities[np.arange(60), numbers].sum() == pytest.approx(best)


def test_prices_stay_where_all_sizes_fit() -> None:
    similarities = np.kron(np.eye(3), np.ones((10, 1)))
    prices = np.array([0.1, 0.0, -0.1])
    assert np.array_equal(bounded_prices(similarities, np.ones(30), prices), prices)


@pytest.mark.parametrize("seed", [*range(5), 2**32, 2**63])
def test_topics_are_found_and_distinguished(seed: int) -> None:
    texts, topics = texts_of({"code": 40, "sea": 60, "poem": 25}, seed)
    made = fit_clusters(texts, sizes_of(texts), 3, seed)
    assert made is not None
    numbers = made.numbers(made.similarities(texts)).tolist()
    pairs = set(zip(numbers, topics, strict=True))
    assert len(pairs) == 3
    for number, topic in pairs:
        told = made.telling[number]
        assert 0 < len(told) <= TELLING
        assert set(told) <= {*TOPICS[topic], *("".join(p) for p in told if topic == "poem")}
    found = np.bincount(numbers, sizes_of(texts))
    assert sorted(found, reverse=True) == found.tolist()


def test_the_same_texts_and_seed_give_the_same_clusters() -> None:
    texts, _ = texts_of({"code": 30, "sea": 30, "poem": 30})
    one, two = (fit_clusters(texts, sizes_of(texts), 4, 3) for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.fingerprint == two.fingerprint


def test_a_large_topic_is_divided_and_small_ones_are_joined() -> None:
    texts, topics = texts_of({"sea": 400, "poem": 12, "code": 12})
    made = fit_clusters(texts, sizes_of(texts), 3, 0)
    assert made is not None
    numbers = made.numbers(made.similarities(texts))
    found = np.bincount(numbers, sizes_of(texts)) / (sizes_of(texts).sum() / 3)
    largest = sizes_of(texts).max() / (sizes_of(texts).sum() / 3)
    assert found.min() >= BOUNDS[0] - largest
    assert found.max() <= BOUNDS[1] + largest
    small = {int(n) for n, topic in zip(numbers, topics, strict=True) if topic != "sea"}
    assert len(small) < 3


def test_texts_that_are_alike_have_no_clusters() -> None:
    assert fit_clusters(["the same"] * 9, np.ones(9), 2, 0) is None
    assert fit_clusters(["one", "two"], np.ones(2), 2, 0) is not None
