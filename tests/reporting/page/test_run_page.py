"""The page on runs: what it shows comes from their files, is escaped, and needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from llmkit.errors import DataError, InputNotFound, UsageError
from llmkit.reporting.page.run_page import report_page
from llmkit.reporting.run_record import read_run
from tests.conftest import MakeRun

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr", "path", "use", "rect"}


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
    row = page[page.index(">accuracy <") : page.index("</tr>", page.index(">accuracy <"))]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == ["0.8", "0.7 to 0.9", "0.7", "0.6"]
    assert "higher is better" in row


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
    assert '<th scope="row">class 3</th><td>class 7</td><td class="n">4</td>' in page
    assert 'class="map"' not in page


def test_several_runs_are_compared_by_the_keys_that_differ(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    page = report_page(runs)
    assert "second has the best accuracy: 0.8; next is first with 0.7" in page
    assert "Their intervals overlap" in page
    assert Tags(page).open == []


def test_runs_with_other_validation_data_are_compared_with_a_warning(make_run: MakeRun) -> None:
    facts = {
        "command": "finetune", "content": {"validation data": "other"}, "result": {"step": 2},
    }  # fmt: skip
    runs = [read_run(make_run("first")), read_run(make_run("second", run_json=json.dumps(facts)))]
    assert "the held-out data of second and first differ" in report_page(runs)


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
    assert "<div><span>an older text</span></div>" in page
    assert "<div><b>prompt</b><span>&lt;once&gt; upon</span></div>" in page
    assert "<div><b>continuation</b><span>a time</span></div>" in page
    assert Tags(page).open == []
