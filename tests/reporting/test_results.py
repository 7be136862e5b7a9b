"""Files of an evaluation: whole, readable, and never over someone else's."""

from __future__ import annotations

import json
import re

import pytest

from llmkit.errors import WriteError
from llmkit.reporting import results
from llmkit.reporting.console import Console

LABELS = {
    "command": "evaluate", "model": "runs/b", "examples": 10, "accuracy": 0.7,
    "intervals": {"accuracy": [0.6, 0.8]}, "protocol": {"precision": "fp32"},
    "per_class": {name: {"f1": 2 / 3, "support": 5} for name in ("no", "yes")},
    "confusion_matrix": [[4, 1], [2, 3]],
    "baseline": {"majority_of_these_rows": {"accuracy": 0.5}},
}  # fmt: skip
FIGURES = {"command": "evaluate", "tokens": 3, "by_domain": [{"domain": "a", "nll": 1.5}]}


@pytest.mark.parametrize("name", ["result.json", "result.md", "rows.jsonl"])
def test_what_an_evaluation_wrote_may_be_written_again(tmp_path, name) -> None:
    path = tmp_path / "new" / name
    results.check_output_files([str(path), None])
    if name == "rows.jsonl":
        results.write_lines(path, [{"row": 1}, {"row": 2}])
    else:
        results.write_result(path, FIGURES)
    results.check_output_files([str(path)])


@pytest.mark.parametrize("text", ["", "my notes\n", '{"command": "pretrain"}'])
def test_another_file_is_never_overwritten(tmp_path, text) -> None:
    path = tmp_path / "notes.md"
    path.write_text(text)
    with pytest.raises(WriteError, match="not written by `llmkit evaluate`"):
        results.check_output_files([str(path)])
    assert path.read_text() == text


def test_a_result_is_json_for_machines_and_otherwise_a_table(tmp_path) -> None:
    results.write_result(tmp_path / "r.json", FIGURES)
    assert json.loads((tmp_path / "r.json").read_text()) == FIGURES
    results.write_result(tmp_path / "r.txt", FIGURES)
    text = (tmp_path / "r.txt").read_text()
    assert text.startswith("command: evaluate\ntokens: 3\n")
    assert "domain" in text
    assert "1.5" in text


def test_a_directory_that_cannot_be_made_is_reported(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        results.write_result(tmp_path / "file" / "r.json", FIGURES)


def test_a_report_is_markdown_with_headings_and_tables(tmp_path) -> None:
    path = tmp_path / "report.md"
    worst = {"row": 3, "label": "a|b", "text": "<b>*one*\ntwo_three_</b> `x`"}
    figures = {**LABELS, "worst": [worst], "warnings": ["9 rows were trained on"]}
    results.picture_beside(path).write_bytes(b"")
    results.write_result(path, figures)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# Evaluation of runs/b", "## Metrics", "## Per class",
        "## Confusion matrix: predictions by actual label", "## Worst",
    ]  # fmt: skip
    assert "> **Warning:** 9 rows were trained on" in lines
    assert "![Confusion matrix](report.md.confusion.png)" in lines
    assert "| accuracy | 0.7 | 0.6 to 0.8 | 0.5 |" in lines
    assert r"| 3 | a\|b | \<b\>\*one\* two_three\_\</b\> \`x\` |" in lines
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( -+:? \|)+", line):
            columns = line.count(" |")
            assert lines[number - 2] == ""
            for row in (lines[number - 1], lines[number + 1]):
                assert len(re.findall(r"(?<!\\)\|", row)) == columns + 1
    assert lines[-1].startswith("Protocol: ")
    assert not re.search(r"\n{3}", path.read_text())


def test_a_report_of_other_figures_has_a_table_of_them(tmp_path) -> None:
    results.write_result(tmp_path / "r.md", FIGURES)
    text = (tmp_path / "r.md").read_text()
    assert "## Figures" in text
    assert "| tokens | 3 |" in text
    assert "## By domain" in text


def test_names_of_models_and_labels_stay_as_they_are(tmp_path) -> None:
    labels = ("not_spam", "_a_|b", "[Yes]")
    figures = {
        **LABELS, "model": "runs/My_Model",
        "per_class": {name: {"f1": 0.5, "support": 5} for name in labels},
        "confusion_matrix": [[1, 2, 3]] * 3,
    }  # fmt: skip
    both = {
        "command": "evaluate",
        "models": [figures, {**figures, "model": "runs/__x__"}],
    }
    results.write_result(tmp_path / "r.md", both)
    lines = (tmp_path / "r.md").read_text().splitlines()
    assert "## Metrics of runs/My_Model" in lines
    assert r"## Metrics of runs/\_\_x\_\_" in lines
    assert r"|  | not_spam | \_a\_\|b | \[Yes\] |" in lines
    assert r"| \[Yes\] | 1 | 2 | 3 |" in lines


def test_a_terminal_shows_the_names_of_labels_as_they_are(capsys) -> None:
    labels = ("not_spam", "[red]x", "b")
    figures = {
        **LABELS, "per_class": {name: {"f1": 0.5, "support": 5} for name in labels},
        "confusion_matrix": [[1, 2, 3]] * 3,
    }  # fmt: skip
    Console().result(figures)
    shown = capsys.readouterr().out
    head = next(line for line in shown.splitlines() if line.count("not_spam") and "[red]x" in line)
    assert head.split() == list(labels)


def test_the_picture_of_an_earlier_result_is_not_linked(tmp_path) -> None:
    path = tmp_path / "report.md"
    results.picture_beside(path).write_bytes(b"")
    results.write_result(path, {key: v for key, v in LABELS.items() if key != "confusion_matrix"})
    assert "![" not in path.read_text()
    results.write_result(path, {"command": "evaluate", "models": [LABELS, LABELS]})
    assert "![Confusion matrix](report.md.confusion.png)" in path.read_text()
