"""Parts of a data set that are cut by the position of their rows, in every task with rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.load import load_config
from llmkit.data.readers.files import Sources
from llmkit.data.records import conversation_sets, dataset
from llmkit.data.records.preferences import PREFERENCES
from llmkit.data.records.tagging import tagged_dataset
from llmkit.errors import ConfigError
from llmkit.progress import Watch

LOADERS: dict[str, Callable[..., Any]] = {
    "classification": dataset.load_labelled,
    "token_classification": tagged_dataset.load_tagged,
    "completion": conversation_sets.load_conversations,
    "preference": partial(conversation_sets.load_form, PREFERENCES, tokenizer=None),
}


def row(task: str, number: int) -> dict[str, Any]:
    if task == "token_classification":
        return {"tokens": ["Anna", str(number)], "tags": ["B-PER", "O"]}
    if task == "completion":
        return {"prompt": f"row {number}", "response": "yes"}
    if task == "preference":
        return {"prompt": f"row {number}", "chosen": "yes", "rejected": "no"}
    return {"text": f"row {number}", "label": "odd" if number % 2 else "even"}


def load(task: str, folder: Path, watch: Watch, *keys: str) -> tuple[Any, list[str]]:
    """A data set of twenty rows in two files, and what was said."""
    for name, numbers in (("a", range(12)), ("b", range(12, 20))):
        lines = (json.dumps(row(task, number)) + "\n" for number in numbers)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    files = f"data.train_files=[{folder / 'a.jsonl'}, {folder / 'b.jsonl'}]"
    given = [files, f"train.objective={task}", *keys]
    config = load_config("finetune", None, given).config
    said: list[str] = []
    return LOADERS[task](config, Sources(config), watch, said.append, said.append), said


def numbers(part: Any) -> list[int]:
    """The numbers in the texts of the rows of a part."""
    texts = [each.opening for each in part] if isinstance(part, list) else part.texts
    return [int(text.split()[-1]) for (text,) in texts]


@pytest.mark.parametrize("task", LOADERS)
def test_rows_are_numbered_through_all_files_and_cut_like_a_python_list(
    task: str, tmp_path: Path, watch: Watch
) -> None:
    keys = ["data.train_rows=2:14", "data.validation_rows=-6:"]
    has_test = task not in ("completion", "preference")
    keys += ["data.test_rows=:2"] if has_test else []
    data, said = load(task, tmp_path, watch, *keys)
    rows = list(range(20))
    assert numbers(data.train) == rows[2:14]
    assert numbers(data.validation) == rows[-6:]
    if has_test:
        assert numbers(data.test) == rows[:2]
    (sentence,) = [text for text in said if "numbered from 0" in text]
    assert "12 for train (2 to 13), 6 for validation (14 to 19)" in sentence
    assert ("2 in no part" in sentence) is not has_test


@pytest.mark.parametrize("task", LOADERS)
def test_a_share_of_the_training_rows_is_held_out_without_validation_rows(
    task: str, tmp_path: Path, watch: Watch
) -> None:
    data, _ = load(task, tmp_path, watch, "data.train_rows=5:")
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(5, 20))
    assert numbers(data.validation)


def test_overlap_between_parts_is_reported_with_the_keys_of_their_rows(
    tmp_path: Path, watch: Watch
) -> None:
    (tmp_path / "c.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\na,x\n")
    given = [f"data.train_files={tmp_path / 'c.csv'}", "data.test_rows=4:"]
    given.append("data.allow=one_row_classes")
    config = load_config("finetune", None, given).config
    said: list[str] = []
    found = dataset.load_labelled(config, Sources(config), watch, said.append, said.append)
    assert found.report["overlap"]["count"] == 1
    assert any(text.startswith("1 row of data.test_rows with a text that") for text in said)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["data.test_rows=15:21"], "leaves the 20 rows"),
        (["data.test_rows=-21:"], "leaves the 20 rows"),
        (["data.test_rows=20:"], "chooses none"),
        (["data.test_rows=3:-18"], "chooses none"),
        (["data.test_rows=10:", "data.train_rows=:11"], "share the rows 10 to 10"),
        (["data.test_rows=10:12"], "in several pieces"),
    ],
)
def test_ranges_that_do_not_fit_the_rows_are_refused(
    tmp_path: Path, watch: Watch, keys: list[str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as raised:
        load("classification", tmp_path, watch, *keys)
    assert "data." in raised.value.where


@pytest.mark.parametrize(
    ("value", "meant"), [("8000:", "8000:"), ("-5:", "-5:"), (":8000", ":8000"), ("1:3", "1:3")]
)
def test_ranges_are_read_from_the_command_line(value: str, meant: str) -> None:
    config = load_config("finetune", None, [f"data.test_rows={value}"]).config
    assert config.data.test_rows == meant


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["data.test_rows=5"], "not a range of rows"),
        (["data.test_rows=':'"], "not a range of rows"),
        (["data.test_rows=1:2:3"], "not a range of rows"),
        (["data.test_rows=5:5"], "chooses no row"),
        (["data.test_rows=-3:-4"], "chooses no row"),
        (["data.test_rows=5:", "data.test_files=x.csv"], "cannot be combined with data.test_files"),
        (["data.validation_rows=5:", "data.validation_files=x.csv"], "cannot be combined"),
    ],
)
def test_ranges_that_choose_nothing_or_double_a_part_are_refused_before_reading(
    keys: list[str], what: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("finetune", None, keys)
    assert what in f"{raised.value.what} {raised.value.where} {raised.value.next}"
