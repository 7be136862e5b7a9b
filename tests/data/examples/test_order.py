import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.examples.order import permutation, rows_of_step


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**80))
def test_a_permutation_hits_every_index_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, (seed,))(np.arange(n))) == list(range(n))


def test_a_permutation_of_many_elements_is_asked_without_making_it() -> None:
    places = permutation(10**12, (1, 2))(np.arange(10**9, 10**9 + 512))
    assert len(set(places.tolist())) == 512
    assert places.min() >= 0
    assert places.max() < 10**12
    assert 0.4e12 < places.mean() < 0.6e12


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert permutation(10, (0, 0))(np.arange(10)).tolist() == [7, 1, 4, 8, 5, 2, 3, 9, 0, 6]


def test_keys_are_not_mixed_up() -> None:
    orders = {tuple(permutation(50, key)(np.arange(50))) for key in [(1, 2), (2, 1), (3, 0), (12,)]}
    assert len(orders) == 4


def test_every_element_comes_first_about_equally_often() -> None:
    first = [int(permutation(5, (seed,))(np.array([0]))[0]) for seed in range(2000)]
    assert np.bincount(first).min() > 320
    assert np.bincount(first).max() < 480


@given(
    n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9), epochs=st.integers(1, 3)
)
def test_each_epoch_sees_every_example_once_whatever_the_batch_size(
    n: int, batch: int, seed: int, epochs: int
) -> None:
    limit = n * epochs
    steps = -(-limit // batch)
    rows = np.concatenate([rows_of_step(step, n, batch, seed, limit) for step in range(steps)])
    one_by_one = [int(rows_of_step(slot, n, 1, seed)[0]) for slot in range(limit)]
    assert rows.tolist() == one_by_one
    for epoch in range(epochs):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_nothing_is_left_after_the_limit() -> None:
    assert len(rows_of_step(2, 10, 4, 0, limit=10)) == 2
    assert len(rows_of_step(3, 10, 4, 0, limit=10)) == 0


def test_no_examples_have_no_order() -> None:
    with pytest.raises(ValueError, match="at least one"):
        permutation(0, (0,))
