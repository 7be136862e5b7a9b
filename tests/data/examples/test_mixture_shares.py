"""Which domain gives which example: shares that hold at every moment, on any way through a run."""

from __future__ import annotations

import numpy as np
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from llmkit.data.examples import order
from llmkit.data.examples.mixture import examples_given, mixed_rows_of_step

SHARES = st.lists(st.integers(1, 1000) | st.sampled_from([0, 1, 10**6]), min_size=1, max_size=12)


def shares_of(weights: list[int]) -> np.ndarray:
    weights = weights if any(weights) else [1, *weights]
    return np.array(weights) / sum(weights)


@settings(max_examples=40, deadline=None)
@examples(weights=SHARES, first=st.integers(0, 2**31))
def test_every_domain_keeps_its_share_at_every_moment(weights: list[int], first: int) -> None:
    shares = shares_of(weights)
    slots = first + np.arange(300)
    counts = examples_given(slots, shares)
    assert (counts.sum(axis=1) == slots).all()
    near = 1 if len(shares) <= 3 else 2
    # Shares are rounded to whole parts of 2^31, which the slots so far multiply.
    assert (np.abs(counts - slots[:, None] * shares) < near + len(shares) * slots[-1] / 2**31).all()


@settings(max_examples=40, deadline=None)
@examples(weights=SHARES, first=st.integers(0, 10**9))
def test_every_slot_belongs_to_one_domain(weights: list[int], first: int) -> None:
    steps = np.diff(examples_given(first + np.arange(300), shares_of(weights)), axis=0)
    assert set(np.unique(steps)) <= {0, 1}
    assert (steps.sum(axis=1) == 1).all()


def test_a_domain_without_a_share_gives_nothing() -> None:
    assert examples_given(np.array([1000]), [0.25, 0.0, 0.75]).tolist() == [[250, 0, 750]]


def test_the_draw_is_the_same_on_every_machine_and_version() -> None:
    rows = mixed_rows_of_step(
        3, global_batch_size=12, sizes=[5, 9, 40], shares=[0.2, 0.3, 0.5], seed=1
    )
    assert rows.tolist() == [52, 2, 37, 11, 49, 13, 16, 0, 51, 7, 24, 1]


@settings(max_examples=40, deadline=None)
@examples(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    batch=st.integers(1, 40),
    seed=st.integers(0, 5),
    limit=st.integers(1, 70),
    data=st.data(),
)
def test_any_batch_size_draws_the_same_and_each_domain_in_its_own_epochs(
    sizes: list[int], batch: int, seed: int, limit: int, data: st.DataObject
) -> None:
    weights = [data.draw(st.integers(1, 9)) for _ in sizes]
    common = {"sizes": sizes, "shares": shares_of(weights), "seed": seed}
    steps = range(-(-limit // batch))
    runs = [mixed_rows_of_step(s, global_batch_size=batch, limit=limit, **common) for s in steps]
    rows = np.concatenate(runs)
    single = [mixed_rows_of_step(s, global_batch_size=1, **common)[0] for s in range(limit)]
    assert rows.tolist() == single
    starts = np.cumsum([0, *sizes])
    counts = examples_given(np.array([limit]), common["shares"])[0]
    for number, size in enumerate(sizes):
        own = rows[(rows >= starts[number]) & (rows < starts[number + 1])] - starts[number]
        assert len(own) == counts[number]
        for begin in range(0, len(own) - size + 1, size):
            assert sorted(own[begin : begin + size]) == list(range(size))


def test_one_domain_alone_comes_in_as_many_epochs_as_without_a_mixture() -> None:
    rows = mixed_rows_of_step(0, global_batch_size=30, sizes=[10], shares=[1.0], seed=4)
    alone = order.rows_of_slots(np.arange(30), 10, (4, 0))
    assert rows.tolist() == alone.tolist()
