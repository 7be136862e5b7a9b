"""The page in a browser: no errors or requests, by keyboard, on a phone, legible in both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.reporting import plots
from llmkit.reporting.held_out import OF_LABELS, HeldOut, write_held_out
from llmkit.reporting.page.run_page import Evaluation, report_page
from llmkit.reporting.run_record import read_run
from tests.browser import Browser, needs_browser
from tests.conftest import MakeRun
from tests.contrast import TEXT, contrast, mixed

from .test_heatmap import RESULT

TEMPLATES = Path(plots.__file__).parent / "templates"
LIGHT, DARK = (TEMPLATES / "report.css").read_text().split("@media(prefers-color-scheme:dark)", 1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(make_run: MakeRun, tmp_path: Path) -> Path:
    """A page that compares three runs, one with an evaluation of its experts."""
    runs = []
    for number, name in enumerate(("a-run-with-a-rather-long-name-for-a-phone", "second", "third")):
        directory = make_run(name, 0.7 + number / 10)
        label = np.arange(20) % 2
        predicted = np.where(np.arange(20) < 14 + 2 * number, label, 1 - label)
        columns = {"unit": np.arange(20), "label": label, "predicted": predicted,
                   "loss": np.ones(20)}  # fmt: skip
        write_held_out(directory, HeldOut(OF_LABELS, "rows", columns, ("a", "b")))
        runs.append(read_run(directory))
    result: dict[str, Any] = {"command": "evaluate", "model": "second", "tokens": 9,
                              "perplexity": 3.0, "protocol": {"window": 9}, **RESULT}  # fmt: skip
    path = tmp_path / "report.html"
    evaluations = {"second": [Evaluation("result.json", result)]}
    path.write_text(report_page(runs, evaluations), encoding="utf-8")
    return path


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_loads_from_a_file_without_errors_or_requests(
    browser: Browser, page: Path, dark: bool
) -> None:
    browser.requests.clear()
    browser.open(page.as_uri(), dark=dark)
    assert browser.evaluate("document.querySelectorAll('article').length") == 3
    assert browser.complaints == []
    others = [url for url in browser.requests if not url.startswith("data:")]
    assert others == [page.as_uri()]


@needs_browser
def test_the_table_is_sorted_with_the_keyboard(browser: Browser, page: Path) -> None:
    names = "[...document.querySelectorAll('.sortable tbody a')].map(e => e.textContent)"
    heading = "document.activeElement.closest('th')?.getAttribute('aria-sort')"
    browser.open(page.as_uri())
    first = browser.evaluate(names)
    for _ in range(40):  # to the heading of the second column
        browser.press("Tab")
        if browser.evaluate("document.activeElement.textContent") == "accuracy":
            break
    browser.press("Enter")
    assert browser.evaluate(heading) == "ascending"
    assert browser.evaluate(names) == first
    browser.press(" ")
    assert browser.evaluate(heading) == "descending"
    assert browser.evaluate(names) == first[::-1]


@needs_browser
@pytest.mark.parametrize("width", [320, 360, 1000])
def test_only_tables_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page.as_uri(), width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    unreachable = "[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex !== 0).length"
    assert browser.evaluate(unreachable) == 0


@needs_browser
def test_headings_are_in_order_and_pictures_have_texts(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    levels = browser.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    unnamed = "[...document.querySelectorAll('svg')].filter(e => !e.closest('[aria-label]')).length"
    assert browser.evaluate(unnamed) == 0


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_on_shades_is_drawn_as_computed(browser: Browser, page: Path, dark: bool) -> None:
    """The browser mixes the shades of cells as `mixed` does, on which the next tests depend."""
    browser.open(page.as_uri(), dark=dark)
    colors = _colors(dark)
    cells = browser.evaluate(
        "[...document.querySelectorAll('.map td[style]')].map(e => [e.className,"
        " +e.style.getPropertyValue('--shade'), getComputedStyle(e).backgroundColor])"
    )
    assert len(cells) > 8
    for kind, shade, shown in cells:
        values = np.array([float(each) for each in re.findall(r"[\d.]+", shown)[:3]])
        values *= 255 if shown.startswith("color(") else 1
        expected = mixed(colors[kind], colors["paper"], shade)
        assert values == pytest.approx(expected, abs=2), (kind, shade, shown)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_level_aa(dark: bool) -> None:
    colors = _colors(dark)
    pairs = [
        ("ink", "paper"), ("faint", "paper"), ("warn", "warn-paper"), ("ink", "card"),
        ("faint", "card"), ("focus", "paper"),
    ]  # fmt: skip
    found = {pair: contrast(*(colors[name] for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in found.items() if ratio < TEXT} == {}


@pytest.mark.parametrize("kind", ["hit", "miss"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_numbers_on_every_shade_have_the_contrast_of_level_aa(dark: bool, kind: str) -> None:
    colors = _colors(dark)
    shades = [mixed(colors[kind], colors["paper"], share) for share in np.linspace(0, 1, 51)]
    ratios = [contrast(colors["ink"], shade) for shade in shades]
    assert min(ratios) >= TEXT
    assert ratios == sorted(ratios, reverse=True)  # the larger the share, the deeper the shade
    distance = [float(np.abs(shade - colors["paper"]).sum()) for shade in shades]
    assert np.diff(distance) == pytest.approx(distance[-1] / 50)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_and_bars_stand_out_from_the_paper(dark: bool) -> None:
    colors = _colors(dark)
    names = ["muted", *(f"series-{n}" for n, _ in enumerate(plots.SERIES, 1))]
    faint = {name: contrast(colors[name], colors["paper"]) for name in names}
    assert {name: ratio for name, ratio in faint.items() if ratio < 3} == {}
    if not dark:
        hexes = [f"#{''.join(f'{int(v):02x}' for v in colors[name])}" for name in names[1:]]
        assert hexes == list(plots.SERIES)


def _colors(dark: bool) -> dict[str, Any]:
    """The colours of a theme, [red, green, blue] each."""
    found = re.findall(r"--([\w-]+):#([0-9a-f]{6})", (LIGHT + DARK) if dark else LIGHT)
    return {name: np.array([int(value[n : n + 2], 16) for n in (0, 2, 4)], float)
            for name, value in found}  # fmt: skip
