"""Odd rows of labelled data, against comparing every row with every other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.records.findings import SHOWN, finding, repeats
from llmkit.data.records.parts import Part

TEXTS = st.lists(st.sampled_from(["a", "a ", " b", "b", "c"]), max_size=6)


def part(name: str, texts: list[str]) -> Part:
    made = Part(name, texts=[(text,) for text in texts], raws=["x"] * len(texts))
    made.places = [(f"{name}.csv", number) for number in range(1, len(texts) + 1)]
    return made


@given(TEXTS, TEXTS)
def test_rows_repeat_the_first_row_of_their_part_and_of_an_earlier_one(
    train: list[str], test: list[str]
) -> None:
    expected = set()
    rows = [("train", n, text) for n, text in enumerate(train, 1)]
    rows += [("test", n, text) for n, text in enumerate(test, 1)]
    for number, (name, row, text) in enumerate(rows):
        for other in ("train", "test"):
            earlier = [each for each in rows[:number] if each[0] == other]
            exact = [each for each in earlier if each[2] == text]
            alike = [each for each in earlier if each[2].strip() == text.strip()]
            if alike:
                first = (exact or alike)[0]
                expected.add((name, row, other, first[1], bool(exact)))
    found = repeats({"train": part("train", train), "test": part("test", test)})
    assert {
        (each.part, each.place[1], each.first_part, each.first_place[1], each.exact)
        for each in found
    } == expected


def test_a_long_finding_is_counted_whole_and_shown_in_part() -> None:
    rows = [{"row": number} for number in range(SHOWN + 3)]
    assert finding(rows) == {"count": SHOWN + 3, "rows": rows[:SHOWN]}
