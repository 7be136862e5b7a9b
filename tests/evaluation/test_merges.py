"""A merge that loses something says so, with the figures."""

from __future__ import annotations

from llmkit.evaluation.merges import worse_domains


def test_a_domain_that_needs_more_than_one_percent_more_bits_is_reported() -> None:
    found = {
        "code": {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 2.022}},
        "law": {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 2.019}},
        "poems": {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 1.5}},
        "new": {"after": {"bits_per_byte": 9.0}},
    }
    (sentence,) = worse_domains(found)
    assert "on code: 2.022 bits per byte, the seed 2 (+1.1%)" in sentence
