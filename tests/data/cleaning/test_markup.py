"""HTML is recognised, and its text taken out."""

from __future__ import annotations

import pytest

from llmkit.data.cleaning.markup import is_html, text_of_html
from tests.dirty import prose, second_corpora

PAGE = (
    "<!DOCTYPE html><html><head><title>T</title><script>var x = 1;</script></head><body>"
    "<nav><a href='/'>Home</a><a href='/b'>More</a></nav><article>{}</article></body></html>"
)


def test_the_text_of_a_page_is_its_paragraphs() -> None:
    paragraphs = prose(3, words=40)
    page = PAGE.format("".join(f"<p>{each}</p>" for each in paragraphs))
    assert is_html(page)
    found = text_of_html(page)
    assert all(each in found for each in paragraphs)
    assert "Home" not in found
    assert "var x" not in found


def test_a_part_of_a_page_is_recognised() -> None:
    assert is_html("<div><p>one</p><p>two</p><p>three</p></div>")


@pytest.mark.parametrize(
    "text",
    [
        "In HTML, <p> begins a paragraph and </p> ends it, as <div> and </div> do.",
        "if a < b and c > d: print('<html>')",
        "<- this is an arrow ->",
    ],
)
def test_text_about_tags_is_not_html(text: str) -> None:
    assert not is_html(text)


def test_no_clean_text_is_taken_for_html() -> None:
    assert not any(is_html(text) for _, texts in second_corpora(30) for text in texts)
