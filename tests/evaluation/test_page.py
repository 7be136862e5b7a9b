"""The page of shaded tokens: the text itself, escaped, whole, and on its own."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from llmkit.evaluation.likelihood import Scores
from llmkit.evaluation.page import page, token_texts

from .conftest import byte_level

TEXT = "the <b>cat</b> & 'sat' \"on\"\n\ta 家 émile 🙂 mat"


class Reader(HTMLParser):
    """The text and the marked-up tokens of the page's documents."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.depth = 0
        self.text, self.titles, self.tags = "", [], []
        self.skipped = False
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        self.depth += tag == "article"
        self.skipped = tag in ("h2", "span")
        if tag == "b" and self.depth:
            self.titles.append(dict(attributes)["title"])

    def handle_endtag(self, tag) -> None:
        self.depth -= tag == "article"
        self.skipped = False

    def handle_data(self, data) -> None:
        if self.depth and not self.skipped:
            self.text += data


@pytest.fixture(scope="module")
def shown() -> Reader:
    tokenizer = byte_level(320)
    ids = [0, *tokenizer(TEXT)["input_ids"], 0]
    tokens = SimpleNamespace(ids=np.array(ids), starts=np.array([0]), opening=0, closing=0)
    nll = np.linspace(0, 9, len(ids) - 1)
    nll[3] = -1
    scores = Scores(np.zeros(1), np.zeros(1, int), np.zeros(1), nll, np.zeros(len(nll), int))
    html = page("<script>model</script>", ["perplexity 2 & more"], tokens, scores, tokenizer)
    return Reader(html)


def test_the_text_stands_there_as_it_is(shown) -> None:
    assert shown.text == TEXT


def test_each_token_tells_its_probability_and_surprise(shown) -> None:
    assert "probability: 1\n" in shown.titles[0]
    assert "surprise: 0.00 bits" in shown.titles[0]
    assert "not scored" in shown.titles[3]
    assert all("token: " in title for title in shown.titles)
    surprise = [re.search(r"surprise: ([\d.]+)", title) for title in shown.titles]
    assert [float(m[1]) for m in surprise if m] == sorted(float(m[1]) for m in surprise if m)


def test_the_page_needs_nothing_else_and_runs_nothing(shown) -> None:
    names = {tag for tag, _ in shown.tags}
    assert not names & {"script", "link", "img", "iframe"}
    assert not [a for _, attributes in shown.tags for a in attributes if a in ("href", "src")]


@pytest.mark.parametrize("text", ["家族🙂", " leading", "tab\tand\nline", "é", "🏳️‍🌈 ok"])
def test_characters_of_several_tokens_come_whole(text) -> None:
    tokenizer = byte_level(260)
    ids = tokenizer(text)["input_ids"]
    parts = token_texts(ids, tokenizer)
    assert len(parts) == len(ids)
    assert "".join(parts) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)
