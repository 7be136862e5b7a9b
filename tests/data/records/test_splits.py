import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.examples.encoded import targets
from llmkit.data.records import splits
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels
from llmkit.errors import ConfigError

ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "a ", "b", "\tb", "c", "d", "e", "f"]), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)
FRACTIONS = st.floats(0.05, 0.9)
FILES = ("data.train_files", "rows.csv")


def held(rows: list[tuple[str, int]], fraction: float, seed: int = 0) -> list[bool]:
    strata = np.array([stratum for _, stratum in rows], dtype=np.int64)
    return splits.hold_out([(text,) for text, _ in rows], strata, fraction, seed).tolist()


@given(ROWS, FRACTIONS, st.integers(0, 3))
def test_identical_texts_never_stand_on_both_sides(
    rows: list[tuple[str, int]], fraction: float, seed: int
) -> None:
    out = held(rows, fraction, seed)
    sides: dict[str, set[bool]] = {}
    for (text, _), side in zip(rows, out, strict=True):
        sides.setdefault(text.strip(), set()).add(side)
    assert all(len(side) == 1 for side in sides.values())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), FRACTIONS, st.integers(0, 3))
def test_every_class_gives_its_share_and_keeps_a_row(
    sizes: list[int], fraction: float, seed: int
) -> None:
    rows = [(f"{label} {row}", label) for label, size in enumerate(sizes) for row in range(size)]
    out = np.array(held(rows, fraction, seed))
    labels = np.array([label for _, label in rows])
    for label, size in enumerate(sizes):
        taken = int(out[labels == label].sum())
        if size == 1:
            assert taken == 0
        else:
            assert taken == min(max(1, int(fraction * size + 0.5)), size - 1)


@given(ROWS, FRACTIONS, st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_rows(
    rows: list[tuple[str, int]], fraction: float, random: object
) -> None:
    shuffled = list(enumerate(rows))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    out = held(rows, fraction)
    moved = held([row for _, row in shuffled], fraction)
    assert [out[number] for number, _ in shuffled] == moved


def test_the_seed_draws_other_rows() -> None:
    rows = [(str(number), 0) for number in range(100)]
    drawn = {tuple(np.flatnonzero(held(rows, 0.1, seed))) for seed in range(5)}
    assert len(drawn) == 5
    assert {len(each) for each in drawn} == {10}


def test_rows_are_alike_by_class_by_their_rarest_label_or_by_their_tenth() -> None:
    single = Labels(SINGLE, ("a", "b"))
    assert splits.strata(single, np.array([1, 0])).tolist() == [1, 0]
    multi = Labels(MULTI, ("a", "b", "c"))
    rows = targets(multi, [[0, 1], [0], [], [0, 1, 2], [1]])
    assert splits.strata(multi, rows).tolist() == [0, 0, -1, 2, 1]
    values = np.arange(100, dtype=np.float32)[::-1].copy()
    strata = splits.strata(Labels(REGRESSION, ("x",)), values)
    assert np.bincount(strata).tolist() == [10] * 10
    assert (np.diff(strata) <= 0).all()


EDGES = st.one_of(st.none(), st.integers(-12, 12))


@given(st.integers(1, 12), EDGES, EDGES)
def test_a_range_chooses_the_rows_of_a_python_slice_or_is_refused(
    n_rows: int, start: int | None, stop: int | None
) -> None:
    expected = list(range(n_rows))[start:stop]
    inside = all(each is None or -n_rows <= each <= n_rows for each in (start, stop))
    rows = ":".join("" if each is None else str(each) for each in (start, stop))
    if expected and inside:
        assert list(splits.cut_rows({"train": rows}, n_rows, FILES)["train"]) == expected
        return
    with pytest.raises(ConfigError, match="leaves the" if not inside else "chooses none"):
        splits.cut_rows({"train": rows}, n_rows, FILES)


def test_training_rows_are_by_default_those_that_no_other_part_takes() -> None:
    cut = splits.cut_rows({"validation": ":3", "test": "-2:"}, 10, FILES)
    assert {name: list(rows) for name, rows in cut.items()} == {
        "train": [3, 4, 5, 6, 7], "validation": [0, 1, 2], "test": [8, 9],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="in several pieces"):
        splits.cut_rows({"test": "2:4"}, 10, FILES)
    with pytest.raises(ConfigError, match="in none"):
        splits.cut_rows({"test": "0:"}, 10, FILES)


def test_ranges_that_share_rows_are_refused_with_those_rows() -> None:
    with pytest.raises(ConfigError, match=r"data.train_rows and data.test_rows share .* 4 to 5"):
        splits.cut_rows({"test": "4:", "train": ":6"}, 10, FILES)
