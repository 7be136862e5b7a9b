"""Held-out units give the figures of a run, and differences of two runs on the same units."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from llmkit.errors import DataError
from llmkit.reporting import held_out
from llmkit.reporting.held_out import HeldOut, read_held_out, write_held_out

CHANCE = np.random.default_rng(0)


def passages(nll: Any, unit: Any = None, kind: str = held_out.OF_TEXT, **columns: Any) -> HeldOut:
    """Passages of ten predictions and 40 bytes each."""
    n = len(nll)
    each = {
        "unit": np.arange(n) if unit is None else unit,
        "nll": np.asarray(nll, dtype=float),
        "predictions": np.full(n, 10),
        "bytes": np.full(n, 40.0),
    }
    return HeldOut(kind, "content", {**each, **columns})


def rows(label: Any, predicted: Any, n_labels: int) -> HeldOut:
    """Rows with one label each."""
    columns = {"unit": np.arange(len(label)), "label": label, "predicted": predicted,
               "loss": np.zeros(len(label), np.float32)}  # fmt: skip
    return HeldOut(held_out.OF_LABELS, "content", columns, tuple(map(str, range(n_labels))))


def test_figures_of_passages_are_sums_divided_once() -> None:
    found = passages([10.0, 20.0, 60.0]).figures()
    assert found["loss"] == pytest.approx(3.0)
    assert found["perplexity"] == pytest.approx(math.exp(3))
    assert found["bits_per_byte"] == pytest.approx(90 / math.log(2) / 120)
    masked = passages([10.0], kind=held_out.OF_MASKED_TEXT, hits=np.array([4]))
    masked.columns.pop("bytes")  # type: ignore[attr-defined]
    assert masked.figures() == {"loss": 1.0, "accuracy": 0.4}


@pytest.mark.parametrize(("n_rows", "n_labels"), [(50, 3), (25_000, 4), (3_000, 1500)])
def test_figures_of_rows_are_those_of_sklearn(n_rows: int, n_labels: int) -> None:
    label = CHANCE.integers(n_labels, size=n_rows)
    predicted = np.where(CHANCE.random(n_rows) < 0.6, label, CHANCE.integers(n_labels, size=n_rows))
    found = rows(label, predicted, n_labels).figures()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted))
    wanted = metrics.f1_score(label, predicted, average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(wanted)


def test_figures_of_label_sets_and_numbers_are_those_of_libraries() -> None:
    label, predicted = CHANCE.random((2, 40, 5)) < 0.5
    columns = {"unit": np.arange(40), "label": label, "predicted": predicted, "loss": np.ones(40)}
    found = HeldOut(held_out.OF_LABEL_SETS, "", columns, tuple("abcde")).figures()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"))
    x, y = 1e6 + CHANCE.normal(size=(2, 40))
    numbers = {"unit": np.arange(40), "label": y, "predicted": x}
    found = HeldOut(held_out.OF_NUMBERS, "", numbers).figures()
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-6)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(x, y))


def test_the_interval_of_a_share_has_its_known_width() -> None:
    label = np.zeros(400, int)
    predicted = (np.arange(400) % 5 == 0).astype(int)  # accuracy 0.8
    low, high = rows(label, predicted, 2).intervals()["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 400), rel=0.1)
    assert passages([1.0] * (held_out.FEWEST_UNITS - 1)).intervals() == {}


def test_a_difference_in_pairs_is_far_clearer_than_two_intervals() -> None:
    hard = CHANCE.normal(30, 8, size=200)
    one, other = passages(hard), passages(hard + CHANCE.normal(1, 1, size=200))
    bounds = one.intervals()["loss"], other.intervals()["loss"]
    assert bounds[0][1] > bounds[1][0]
    found = one.differences(other)["loss"]
    assert found.is_clear
    assert found.low < found.value < found.high < 0
    assert found.value == pytest.approx(one.figures()["loss"] - other.figures()["loss"])
    alike = one.differences(one)["loss"]
    assert (alike.value, alike.low, alike.high, alike.is_clear) == (0, 0, 0, False)


def test_only_units_that_both_have_are_compared() -> None:
    one = passages(np.arange(10.0), np.arange(10))
    other = passages(np.arange(12.0)[::-1], np.arange(12)[::-1] + 3)
    found = one.differences(other)["loss"]
    assert found.n_units == 7
    assert found.value == pytest.approx(0.3)  # each nll is its unit, and its unit less three
    assert one.differences(passages(np.zeros(4))) == {}


def test_domains_are_measured_apart() -> None:
    both = passages([10.0] * 5 + [20.0] * 5, domain=np.repeat([0, 1], 5))
    hashes = {"poems": "p", "code": "c"}
    named = HeldOut(both.kind, "", both.columns, domains=hashes, overall=("poems",))
    assert named.of_domain("code").figures()["loss"] == pytest.approx(2)
    assert named.figures()["loss"] == pytest.approx(1)
    assert named.intervals()["loss"] == pytest.approx([1, 1])


def test_units_are_read_as_written_and_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    assert read_held_out(tmp_path) is None
    found = passages(CHANCE.random(20), domain=np.zeros(20, int))
    written = []
    for _ in range(3):
        domains = {"a": "1", "b": "2"}
        write_held_out(tmp_path, HeldOut("text", "é", found.columns, (), domains, ("a",)))
        written.append((tmp_path / held_out.HELD_OUT).read_bytes())
    assert len(set(written)) == 1
    read = read_held_out(tmp_path)
    assert read is not None
    assert (read.kind, read.content, read.names) == ("text", "é", ())
    assert (read.domains, read.overall) == (domains, ("a",))
    assert all((values == found.columns[name]).all() for name, values in read.columns.items())


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10\0\0\0\0\0\0\0{}              "])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / held_out.HELD_OUT).write_bytes(content)
    with pytest.raises(DataError, match="cannot read a file of the run") as refused:
        read_held_out(tmp_path)
    assert held_out.HELD_OUT in str(refused.value)
