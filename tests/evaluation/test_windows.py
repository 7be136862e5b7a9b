"""Every token is scored exactly once, with no more and no less context than was promised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.evaluation.windows import ScoringProtocol, Windows


@st.composite
def streams(draw: st.DrawFn) -> Any:
    """A token stream of a few documents, framed by one id or by two."""
    lengths = draw(st.lists(st.integers(1, 15), min_size=1, max_size=6))
    opening = draw(st.sampled_from([1, 2]))
    ids, starts = [] if opening == 1 else [2], []
    for length in lengths:
        starts.append(len(ids) - (opening == 2))
        ids += ([1] if opening == 1 else []) + list(range(3, 3 + length)) + [2]
    return SimpleNamespace(
        ids=np.array(ids, np.uint16), starts=np.array(starts), opening=opening, closing=2
    )


@st.composite
def protocols(draw: st.DrawFn) -> ScoringProtocol:
    window = draw(st.integers(2, 20))
    bos = draw(st.sampled_from(["document", "window"]))
    return ScoringProtocol(
        window=window,
        stride=draw(st.integers(1, window - (bos == "window"))),
        documents=draw(st.sampled_from(["packed", "separate", "joined"])),
        bos=bos,
        score_end=draw(st.booleans()),
    )


def predicting_places(tokens: Any, protocol: ScoringProtocol) -> list[int]:
    """The places that predict something, told without windows."""
    places = range(len(tokens.ids) - 1)
    if protocol.documents == "joined" or tokens.opening == tokens.closing:
        return list(places)
    return [place for place in places if place + 1 not in tokens.starts]


@given(streams(), protocols())
def test_windows_score_each_place_once_and_in_order(tokens, protocol) -> None:
    windows = Windows(tokens, protocol)
    spans = windows.spans(np.arange(len(windows)))
    scored = [
        place
        for first, stop in zip(spans.first, spans.stop, strict=True)
        for place in range(first, stop)
    ]
    assert scored == predicting_places(tokens, protocol)


@given(streams(), protocols())
def test_a_window_is_never_longer_than_promised_and_holds_what_it_scores(tokens, protocol) -> None:
    windows = Windows(tokens, protocol)
    spans = windows.spans(np.arange(len(windows)))
    room = protocol.window - (protocol.bos == "window")
    assert (spans.stop - spans.start <= room).all()
    assert (spans.start <= spans.first).all()
    assert (spans.first < spans.stop).all()


@given(streams(), protocols())
def test_context_is_at_least_what_the_stride_leaves(tokens, protocol) -> None:
    windows = Windows(tokens, protocol)
    spans = windows.spans(np.arange(len(windows)))
    room = protocol.window - (protocol.bos == "window")
    least = room - protocol.stride
    short = (spans.first - spans.start < least) & (spans.first > spans.start)
    if protocol.documents == "packed":
        # A window that begins with a document has no more of it.
        short &= ~spans.opened
    assert not short.any()


@given(streams(), protocols())
def test_documents_that_are_kept_apart_never_share_a_window(tokens, protocol) -> None:
    if protocol.documents == "joined":
        return
    windows = Windows(tokens, protocol)
    spans = windows.spans(np.arange(len(windows)))
    inner = np.searchsorted(tokens.starts, spans.stop) - np.searchsorted(
        tokens.starts, spans.start, side="right"
    )
    assert (inner == 0).all()
    assert (spans.opened == np.isin(spans.start, tokens.starts)).all()


@given(streams(), protocols())
def test_without_its_end_a_document_is_scored_by_its_text_alone(tokens, protocol) -> None:
    windows = Windows(tokens, protocol)
    places = np.array(predicting_places(tokens, protocol))
    counted = places[windows.scored(places)]
    targets = tokens.ids[counted + 1]
    text = int((tokens.ids > 2).sum())
    if protocol.score_end:
        assert len(counted) == len(places)
    else:
        assert len(targets) == text
        assert (targets > 2).all()


@pytest.mark.parametrize("documents", ["packed", "separate"])
def test_windows_can_be_taken_in_any_order(documents) -> None:
    tokens = SimpleNamespace(ids=np.arange(100), starts=np.array([0, 30, 41]), opening=0, closing=0)
    windows = Windows(tokens, ScoringProtocol(8, 3, documents, "document", True))
    numbers = np.random.default_rng(0).permutation(len(windows))
    whole, some = windows.spans(np.arange(len(windows))), windows.spans(numbers)
    for a, b in zip(whole, some, strict=True):
        assert (a[numbers] == b).all()
