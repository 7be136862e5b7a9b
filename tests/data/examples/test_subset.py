"""Some examples stand for all: fixed, unbiased, of every domain, and counted as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.data.examples.blocks import Blocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.examples.subset import drawn
from llmkit.data.text.token_file import TokenFile


@pytest.fixture
def blocks() -> Blocks:
    return make(1003)


def make(n: int) -> Blocks:
    ids = np.arange(n, dtype=np.int32) % 50
    file = TokenFile(
        ids=ids, starts=np.array([0]), document_bytes=np.array([3 * n]), n_bytes=3 * n,
        opening=0, closing=0, max_id=50, blank=0, undecodable=0, lost=0.0,
        path=Path(), fingerprint="", reused=False,
    )  # fmt: skip
    return Blocks(file, 10)


def test_the_examples_are_those_of_the_whole_and_the_same_each_time(blocks: Blocks) -> None:
    some = drawn(blocks, 30)
    assert len(some) == 30
    assert len(set(some.rows.tolist())) == 30
    assert np.array_equal(some.rows, drawn(blocks, 30).rows)
    for row in (0, 7, 29):
        whole = blocks.batch([int(some.rows[row])])
        assert torch.equal(some.batch([row])["targets"], whole["targets"])
    padding = some.batch([-1])["targets"]
    assert torch.equal(padding, blocks.batch([-1])["targets"])
    assert some.count([-1]) == 0
    assert some.count(range(30)) == blocks.count(some.rows)
    assert sorted(some.longest_first()) == list(range(30))


def test_every_example_is_as_likely_as_any_other(blocks: Blocks) -> None:
    chosen = drawn(blocks, 50).rows
    assert 10 < (chosen < 50).sum() < 40
    assert drawn(blocks, len(blocks)) is blocks
    assert drawn(blocks, 10**9) is blocks


def test_bytes_go_with_the_predictions(blocks: Blocks) -> None:
    some = drawn(blocks, 30)
    share = some.count(range(30)) / blocks.count(range(len(blocks)))
    assert some.n_bytes == pytest.approx(share * blocks.n_bytes)


def test_of_a_mixture_every_domain_keeps_its_share() -> None:
    whole = Mixture({"large": make(9001), "small": make(101)}, tells_domain=True)
    some = drawn(whole, 91)
    assert {name: len(part) for name, part in some.domains.items()} == {"large": 90, "small": 1}
    assert set(some.batch(range(91))["domain"].tolist()) == {0, 1}
    assert some.n_bytes == pytest.approx(whole.n_bytes / 10, rel=0.02)
