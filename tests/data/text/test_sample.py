"""A sample of a text is even and bounded, whatever the pieces it comes in."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llmkit.data.text import sample
from llmkit.data.text.sample import TextSample


@pytest.mark.parametrize("size", [1, 50, 5000, 300_000])
def test_a_short_text_is_kept_whole(size: int) -> None:
    found = TextSample()
    text = "".join(chr(97 + number % 26) for number in range(300_000))
    for start in range(0, len(text), size):
        found.add(text[start : start + size])
    assert "".join(found.parts) == text


@pytest.mark.parametrize("size", [100, 65_536])
def test_a_long_text_is_sampled_from_beginning_to_end(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "LEAST_SAMPLED", 20_000)
    found = TextSample()
    for number in range(0, 2_000_000, size):
        found.add(f"{number:07} " * (size // 8))
        assert found.n_characters < 40_000
    assert found.n_characters >= 10_000
    places = [int(part[:7]) for part in found.parts if part[:7].isdigit()]
    assert places[0] == 0
    assert places[-1] > 1_600_000
    gaps = {after - before for before, after in pairwise(places)}
    assert max(gaps) <= 2 * found.every * max(size, sample._PART)
