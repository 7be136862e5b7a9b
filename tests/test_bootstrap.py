"""Confidence intervals by resampling: as wide as theory has them, paired, and repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit import bootstrap


def test_the_interval_of_a_mean_has_its_known_width() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=(2000, 1))
    low, high = bootstrap.interval(bootstrap.resample(values, 0)[:, 0] / 2000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)


def test_the_same_seed_draws_the_same() -> None:
    values = np.random.default_rng(0).random((50, 3))
    assert (bootstrap.resample(values, 4) == bootstrap.resample(values, 4)).all()
    assert (bootstrap.resample(values, 4) != bootstrap.resample(values, 5)).any()


def test_columns_are_drawn_together() -> None:
    values = np.random.default_rng(0).random((50, 1)) * [1, 2]
    one, other = bootstrap.resample(values, 0).T
    assert other == pytest.approx(2 * one)


def test_two_sets_of_as_many_segments_are_paired() -> None:
    hard = np.random.default_rng(0).random((50, 1)) * 100
    drawn = bootstrap.resample(hard, 0) - bootstrap.resample(hard + 1, 0)
    assert drawn == pytest.approx(-50)


def test_very_many_segments_are_drawn_in_runs_that_lose_none() -> None:
    values = np.ones((bootstrap.MAX_UNITS * 2 + 777, 1))
    drawn = bootstrap.resample(values, 0)
    assert drawn.mean() == pytest.approx(len(values), rel=1e-3)
