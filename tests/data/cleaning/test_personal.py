"""Personal data is masked, and what only looks like it is kept."""

from __future__ import annotations

import random

import pytest

from llmkit.data.cleaning.personal import mask_personal
from tests.dirty import second_corpora


def planted(seed: int = 0) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    digits = lambda n: "".join(chance.choices("123456789", k=n))  # noqa: E731
    found = [(f"user{digits(3)}.x+y@mail-{digits(2)}.example.org", "<email>") for _ in range(20)]
    found += [(".".join(str(chance.randint(1, 255)) for _ in range(4)), "<ip>") for _ in range(20)]
    found += [(f"2001:db8:{digits(4)}::{digits(2)}:{digits(3)}", "<ip>") for _ in range(10)]
    found += [(f"+49 30 {digits(4)} {digits(4)}", "<phone>") for _ in range(10)]
    found += [(f"+1 ({digits(3)}) {digits(3)}-{digits(4)}", "<phone>") for _ in range(10)]
    return found


def test_planted_personal_data_is_masked_by_its_kind() -> None:
    for value, mark in planted():
        assert mask_personal(f"see {value}, or ask")[0] == f"see {mark}, or ask", value


@pytest.mark.parametrize(
    "text",
    [
        "version 2.10.3.1", "in 1999-2000 and 2001", "pi is 3.14159265358979", "@property",
        "12:30:45", "std::vector::begin", "10.1000/xyz.123.456", "x = a[1:2:3]", "300.1.1.1",
        "ISBN 978-3-16-148410-0", "10,000,000,000", "f(a)@b", "2024-05-06 07:08:09",
    ],
)  # fmt: skip
def test_other_numbers_are_kept(text: str) -> None:
    assert mask_personal(text) == (text, {})


def test_marks_do_not_rotate_and_are_not_masked_again() -> None:
    once, found = mask_personal("a@b.org c@d.org 1.2.3.4")
    assert (once, found) == ("<email> <email> <ip>", {"email": 2, "ip": 1})
    assert mask_personal(once) == (once, {})


@pytest.mark.parametrize(("kind", "documents"), [*second_corpora(40)])
def test_clean_text_is_kept(kind: str, documents: list[str]) -> None:
    assert all(mask_personal(text) == (text, {}) for text in documents)
