"""What a run says of its data: amounts, labels, the split, and no folder of a machine."""

from __future__ import annotations

import json
from typing import Any

import yaml

from llmkit.reporting.page.data_facts import MAX_LABELS, data_lines, data_tables
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun


def run_on(make_run: MakeRun, report: dict[str, Any], name: str = "mine", **data: Any) -> RunRecord:
    facts = {"command": "pretrain", "data": report}
    config = {"seed": 3, "data": {"train_files": ["/home/me/a.txt"], **data}}
    return read_run(make_run(name, run_json=json.dumps(facts), config_yaml=yaml.safe_dump(config)))


COUNTS = {"documents": 2, "bytes": 300, "tokens": 100, "blank": 0, "undecodable": 0}


def test_text_is_counted_by_domain_and_part(make_run: MakeRun) -> None:
    held_out = {**COUNTS, "files": ["a.txt", "b.txt"], "more_files": 3, "overlap": None}
    run = run_on(make_run, {"text": {"code": {"train": COUNTS, "validation": held_out}}})
    (table,) = data_tables(run)
    assert table["rows"][0] == ["code: trained on", "2", "300", "100", "3.00", ""]
    assert table["rows"][1][-1] == "a.txt, b.txt and 3 more"
    assert dict(data_lines(run))["overlap with the training text of code"] == "none found"


def test_labels_are_counted_in_each_part_and_the_rarest_are_left_to_a_sentence(
    make_run: MakeRun,
) -> None:
    classes = {f"label {n}": n for n in range(MAX_LABELS + 5)}
    splits = {"train": {"rows": 9, "classes": classes}, "validation": {"rows": 1, "classes": {}}}
    lengths = {"train": {"percentiles": {"50": 3, "95": 8, "100": 9}, "truncated": 1}}
    rows, labels = data_tables(run_on(make_run, {"splits": splits, "lengths": lengths}))
    assert rows["rows"][0] == ["trained on", "9", "3", "8", "9", "1"]
    assert labels["rows"][0] == [f"label {MAX_LABELS + 4}", str(MAX_LABELS + 4), "0"]
    assert len(labels["rows"]) == MAX_LABELS
    assert "the 5 rarest are not listed" in labels["caption"]


def test_only_findings_that_occur_are_listed(make_run: MakeRun) -> None:
    report = {"duplicates": {"count": 0, "count_stripped": 2, "rows": []},
              "blank": {"count": 0, "rows": []}, "undecodable": 4}  # fmt: skip
    lines = dict(data_lines(run_on(make_run, report)))
    assert lines["rows that repeat the text of an earlier row"] == "2"
    assert lines["bytes that could not be decoded"] == "4"
    assert not [name for name in lines if name.startswith("blank")]


def test_files_lose_their_folders_and_the_split_names_its_seed(make_run: MakeRun) -> None:
    lines = dict(data_lines(run_on(make_run, {})))
    assert lines["train files"] == "a.txt"
    assert lines["split"] == "a tenth of the training data held out, drawn by seed 3"
    given = dict(data_lines(run_on(make_run, {}, "other", validation_files=["hub:me/data@test"])))
    assert given["validation files"] == "hub:me/data@test"
    assert given["split"] == "the held-out data are separate files"
