"""The page on runs: what it shows comes from their files, is escaped, and needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmkit.errors import DataError, InputNotFound, UsageError
from llmkit.reporting.page.run_comparison import differing_keys
from llmkit.reporting.page.run_page import report_page
from llmkit.reporting.run_record import read_run
from tests.conftest import MakeRun

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}


class Tags(HTMLParser):
    """Collects the tags of a page and checks that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_page_shows_the_figures_beside_baselines_and_intervals(make_run: MakeRun) -> None:
    page = report_page([read_run(make_run())])
    row = page[page.index(">accuracy<") : page.index("</tr>", page.index(">accuracy<"))]
    found = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert found[:4] == ["0.8", "0.7 to 0.9", "0.7", "0.6"]
    assert "higher is better" in found[4]


def test_a_page_loads_nothing_and_closes_its_tags(make_run: MakeRun) -> None:
    tags = Tags(report_page([read_run(make_run())]))
    assert tags.open == []
    sources = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href")]
    assert all((value or "").startswith(("#", "data:,")) for value in sources)


def test_text_of_the_data_is_escaped(make_run: MakeRun) -> None:
    page = report_page([read_run(make_run())])
    assert "<b>bad" not in page
    assert "<i>three" not in page
    assert "&lt;b&gt;bad" in page


def test_a_page_repeats_the_command_as_a_shell_takes_it(make_run: MakeRun) -> None:
    assert "llmkit finetune --csv &#39;my reviews.csv&#39;" in report_page([read_run(make_run())])


def test_an_unfinished_run_is_called_unfinished(make_run: MakeRun) -> None:
    facts = {"command": "finetune", "plan": [[0, 50]]}
    page = report_page([read_run(make_run(run_json=json.dumps(facts), evaluation_json=None))])
    assert "unfinished: its figures go up to step 2 of 50" in page


def test_many_classes_are_shown_as_their_most_confused_pairs(make_run: MakeRun) -> None:
    size = 30
    matrix = [[5 if row == column else 0 for column in range(size)] for row in range(size)]
    matrix[3][7] = 4
    classes = {f"class {number}": {} for number in range(size)}
    figures = {"validation": {"accuracy": 0.5, "per_class": classes, "confusion_matrix": matrix}}
    page = report_page([read_run(make_run(evaluation_json=json.dumps(figures)))])
    assert "<td>class 3</td><td>class 7</td>" in page
    assert 'class="confusion"' not in page


def test_several_runs_are_compared_by_the_keys_that_differ(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    page = report_page(runs)
    assert differing_keys(runs) == ["train.learning_rate"]
    assert "second has the best accuracy: 0.8; next is first with 0.7" in page
    assert "Their intervals overlap" in page
    assert Tags(page).open == []


def test_runs_with_other_validation_data_are_compared_with_a_warning(make_run: MakeRun) -> None:
    facts = {"command": "finetune", "content": {"validation data": "other"}}
    runs = [read_run(make_run("first")), read_run(make_run("second", run_json=json.dumps(facts)))]
    assert "These 2 runs were validated on 2 different sets of data" in report_page(runs)


def test_runs_of_different_tasks_are_not_compared(make_run: MakeRun) -> None:
    figures = {"validation": {"loss": 1.0, "perplexity": 2.7}}
    runs = [
        read_run(make_run("first")),
        read_run(make_run("text", evaluation_json=json.dumps(figures))),
    ]
    with pytest.raises(UsageError, match="measured by accuracy, the other by perplexity"):
        report_page(runs)


def test_a_directory_without_a_run_is_refused_with_the_runs_inside(make_run: MakeRun) -> None:
    inside = make_run()
    with pytest.raises(InputNotFound) as refused:
        read_run(inside.parent)
    assert "mine" in str(refused.value)
    with pytest.raises(InputNotFound):
        read_run(inside.parent / "nothing")


@pytest.mark.parametrize(
    "files",
    [
        {"run_json": "{"},
        {"run_json": "[1]"},
        {"run_json": "{}"},
        {"config_yaml": "a: [", "run_json": '{"command": "pretrain"}'},
        {"evaluation_json": "no JSON"},
        {"metrics_jsonl": "{}\nno JSON\n"},
    ],
    ids=["run", "no object", "no command", "config", "evaluation", "metrics"],
)
def test_a_damaged_file_of_a_run_is_named(make_run: MakeRun, files: dict[str, str]) -> None:
    directory = make_run(**files)
    with pytest.raises(DataError) as refused:
        read_run(directory)
    assert str(directory) in str(refused.value)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_without_errors(make_run: MakeRun, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    sort = "<script>document.querySelectorAll('th button')[1].click()</script></body>"
    page.write_text(report_page(runs).replace("</body>", sort), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not [line for line in done.stderr.split("\n") if "CONSOLE" in line]
    assert 'aria-sort="ascending"' in done.stdout
    body = done.stdout[done.stdout.index("<tbody>") :]
    assert body.index(">first<") < body.index(">second<")


def test_samples_show_prompt_and_continuation_apart_and_older_runs_their_text(
    make_run: MakeRun,
) -> None:
    rows = [
        {"step": 1, "validation_loss": 2.0},
        {"step": 1, "samples": ["an older text"]},
        {"step": 2, "samples": [{"prompt": "<once> upon", "continuation": "a time"}]},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    page = report_page([read_run(make_run(metrics_jsonl=lines))])
    assert "<div>an older text</div>" in page
    assert '<span class="faint">prompt</span> &lt;once&gt; upon</div>' in page
    assert '<span class="faint">continuation</span> a time</div>' in page
    assert Tags(page).open == []
