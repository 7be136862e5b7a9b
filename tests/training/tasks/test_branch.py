"""What the record of an expert states is what a plain computation gives."""

from __future__ import annotations

import numpy as np

from llmkit.training.tasks import branch


def test_tokens_are_counted_in_parts_like_all_at_once() -> None:
    ids = np.random.default_rng(0).integers(0, 50, 1000).astype(np.uint16)
    expected = np.bincount(ids, minlength=60)
    for size in (1, 7, 999, 1000, 1 << 20):
        found = branch.token_frequency(ids, 60, size)
        assert found.dtype == np.int64
        assert np.array_equal(found, expected)
    assert branch.token_frequency(ids[:0], 60).tolist() == [0] * 60
