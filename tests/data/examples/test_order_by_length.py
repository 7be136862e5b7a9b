import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.examples import order
from llmkit.data.examples.order import rows_by_length


def steps(
    n: int, size: int, count: int, seed: int = 0, limit: int | None = None
) -> list[list[int]]:
    sizes = np.random.default_rng(n).integers(1, 50, n)
    return [
        rows_by_length(step, global_batch_size=size, lengths=sizes, seed=seed, limit=limit).tolist()
        for step in range(count)
    ]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 5), st.integers(0, 3))
def test_each_epoch_sees_every_example_once(n: int, size: int, epochs: int, seed: int) -> None:
    rows = steps(n, size, -(-epochs * n // size), seed, limit=epochs * n)
    assert [len(batch) for batch in rows[:-1]] == [size] * (len(rows) - 1)
    for count in range(1, len(rows) + 1):
        seen = np.bincount(np.concatenate(rows[:count]), minlength=n)
        slots = min(count * size, epochs * n)
        assert (seen.min(), seen.max()) == (slots // n, -(-slots // n))


@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_windows_of_every_size_lose_nothing(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(order, "_WINDOW", window)
    for n, size in [(100, 7), (64, 8), (13, 13), (5, 9)]:
        rows = steps(n, size, -(-3 * n // size), limit=3 * n)
        assert np.bincount(np.concatenate(rows)).tolist() == [3] * n


def test_nothing_comes_after_the_limit() -> None:
    assert [len(batch) for batch in steps(10, 4, 6, limit=14)] == [4, 4, 4, 2, 0, 0]


def test_a_step_does_not_depend_on_the_limit_or_on_other_steps() -> None:
    assert steps(1000, 32, 40) == steps(1000, 32, 40, limit=10_000)
    assert steps(1000, 32, 40)[17] == steps(1000, 32, 18)[17]


def test_batches_have_like_lengths_and_come_in_random_order() -> None:
    n, size = 5000, 32
    sizes = np.random.default_rng(0).geometric(0.05, n)
    batches = [
        sizes[rows_by_length(step, global_batch_size=size, lengths=sizes, seed=1)]
        for step in range(n // size)
    ]
    assert all((np.diff(batch) >= 0).all() for batch in batches)
    padded = sum(int(batch.max()) for batch in batches)
    sorted_at_once = np.sort(sizes)[: len(batches) * size].reshape(-1, size)
    assert padded < 1.1 * int(sorted_at_once.max(axis=1).sum())
    longest = np.array([int(batch.max()) for batch in batches])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.25


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    assert steps(320, 32, 10) != steps(320, 32, 20)[10:]
    assert steps(320, 32, 10) != steps(320, 32, 10, seed=1)
