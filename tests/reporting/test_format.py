"""Numbers, durations and text as people read them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len

from llmkit.reporting.format import (
    clock,
    many,
    markdown_text,
    printable,
    short,
    within_columns,
)


def test_what_is_counted_is_in_the_plural_except_for_one() -> None:
    assert [many(n, "row") for n in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]


@given(st.text())
def test_no_character_remains_that_a_terminal_would_execute(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert all(a == b for a, b in zip(shown, text, strict=True) if b.isprintable())


@given(st.integers(0, 10**6))
def test_a_duration_reads_back_as_its_seconds(seconds: int) -> None:
    *rest, last = clock(seconds).split(":")
    assert len(last) == 2
    assert sum(int(n) * 60**k for k, n in enumerate(reversed([*rest, last]))) == seconds


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.03123456, "0.03123"), (9999, "9999"), (12345, "12.3k"), (1_250_000, "1.25M"),
        (-3e9, "-3G"), (0.0, "0"),
    ],
)  # fmt: skip
def test_a_figure_has_few_characters(value: float, shown: str) -> None:
    assert short(value) == shown


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = [
    *"_*`<>[]|~&#-+=.:!()\\$ aB1\n",
    "__",
    "**",
    "&lt;",
    "&#65;",
    "<b>",
    "](x)",
    "1. ",
    "\u00e9",
]


def shown(source: str) -> list[str]:
    """The texts of a document as a reader of Markdown sees them; anything else is named."""

    def inline(token: Token) -> str:
        kinds = {"text": lambda each: each.content, "text_special": lambda each: each.content}
        return "".join(
            kinds.get(each.type, lambda each: f"<{each.type}>")(each)
            for each in token.children or ()
        )

    return [inline(token) for token in MARKDOWN.parse(source) if token.type == "inline"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@example("__init__")
@example("a_b_c _d_ __e__f__ \u00e9_\u00e9 _")
@example("---")
@example("===")
@example("12. x")
@example("-")
@example("# x #")
@example("\\")
@example("<!-- x -->")
@example("&amp; AT&T")
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    escaped, plain = markdown_text(text), " ".join(text.split())
    if not plain:
        assert escaped == ""
        return
    assert shown(f"# {escaped}") == [plain]
    assert shown(f"{escaped}") == [plain]
    assert shown(f"> **Note:** {escaped}") == [f"<strong_open>Note:<strong_close> {plain}"]
    table = f"| {escaped} | b |\n| --- | --- |\n| {escaped} | c |"
    assert shown(table) == [plain, "b", plain, "c"]


def test_words_and_underscores_within_them_need_no_mark_in_markdown() -> None:
    text = "runs/my_model-2: loss 0.5, C# & AT&T (95%) 1.5 - 2 + 3 = x"
    assert markdown_text(text) == text


@given(st.text("ab 床前é🙂", max_size=30), st.integers(2, 20))
def test_a_fitted_text_is_no_wider_than_its_columns(text: str, columns: int) -> None:
    found = within_columns(text, columns)
    assert cell_len(found) <= columns
    if cell_len(text) <= columns:
        assert found == text
    else:
        assert found.endswith("…")
        assert text.startswith(found.removesuffix("…"))
        more = text[: len(found)]
        assert cell_len(more) > columns - 1 or more.endswith(" ")


def test_a_text_is_cut_where_a_terminal_would_wrap_it() -> None:
    assert within_columns("床前明月光", 10) == "床前明月光"
    assert within_columns("床前明月光", 9) == "床前明月…"
    assert within_columns("床前明月光", 8) == "床前明…"
    assert within_columns("abcdef", 4) == "abc…"
