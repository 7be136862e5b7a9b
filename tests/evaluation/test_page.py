"""The page of shaded tokens: the text itself, escaped, whole, and on its own."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from llmkit.evaluation.likelihood import Scores
from llmkit.evaluation.page import _STYLE, page, token_texts
from tests.contrast import TEXT as TEXT_CONTRAST
from tests.contrast import contrast, mixed

from .conftest import byte_level

TEXT = "the <b>cat</b> & 'sat' \"on\"\n\ta 家 émile 🙂 mat"


class Reader(HTMLParser):
    """The text and the marked-up tokens of the page's documents."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.depth = 0
        self.text, self.titles, self.tags = "", [], []
        self.headings, self.other, self.tag = "", "", ""
        self.skipped = False
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        self.tag = tag
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
        elif self.tag == "h2":
            self.headings += data
        else:
            self.other += data


@pytest.fixture(scope="module")
def shown() -> Reader:
    tokenizer = byte_level(320)
    ids = [0, *tokenizer(TEXT)["input_ids"], 0]
    tokens = SimpleNamespace(ids=np.array(ids), starts=np.array([0]), opening=0, closing=0)
    nll = np.linspace(0, 9, len(ids) - 1)
    nll[3] = -1
    scores = Scores(np.zeros(1), np.zeros(1, int), np.zeros(1), nll, np.zeros(len(nll), int))
    facts = (["perplexity 2 & more"], ["1% is <missing>"], ["<file>.txt, document 2"])
    return Reader(page("<script>model</script>", *facts, tokens, scores, tokenizer))


def test_the_text_stands_there_as_it_is(shown) -> None:
    assert shown.text == TEXT


def test_documents_have_their_names_and_warnings_are_shown(shown) -> None:
    assert re.fullmatch(r"<file>\.txt, document 2: \d\.\d\d bits per token", shown.headings)
    assert "1% is <missing>" in shown.other
    assert "Hover over a token" in shown.other


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_on_every_shade_has_the_contrast_of_level_aa(dark: bool) -> None:
    light, rest = _STYLE.split("@media(prefers-color-scheme:dark)", 1)
    style = rest if dark else light
    named = dict(re.findall(r"--(\w+):#([0-9a-f]{6})", style))
    ink, paper, faint = (bytes.fromhex(named[name]) for name in ("ink", "paper", "faint"))
    heat = [int(each) for each in re.search(r"--heat:([\d,]+)", style)[1].split(",")]
    for opacity in np.linspace(0, 0.75, 12):
        assert contrast(list(ink), mixed(heat, list(paper), opacity)) >= TEXT_CONTRAST
    assert contrast(list(faint), list(paper)) >= TEXT_CONTRAST


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
