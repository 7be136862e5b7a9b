"""Padded lengths."""

from __future__ import annotations

import numpy as np

from llmkit.inference.padding import padded_lengths


def test_lengths_are_padded_by_a_sixteenth_at_most() -> None:
    lengths = np.arange(1, 3000)
    padded = padded_lengths(lengths)
    assert (padded >= lengths).all()
    assert (padded <= np.ceil(lengths * 17 / 16)).all()
    assert len(np.unique(padded)) < 16 * 12
