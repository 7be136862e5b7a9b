"""Prompts with a chosen and a rejected response, as they stand in files."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records.conversation_sets import Chats, load_form
from llmkit.data.records.preferences import PREFERENCES, Preference
from llmkit.errors import DataError


@contextmanager
def watch(label: str, total: int):
    yield lambda n: None


def load(path: Path, said: list[str] | None = None, **data: Any) -> Chats[Preference]:
    keys = {"train_files": [str(path)], "validation_fraction": 0.0, **data}
    config = Config.model_validate({"data": keys})
    told = said if said is not None else []
    return load_form(PREFERENCES, config, Sources(config), watch, told.append, told.append, None)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spoken(found: Chats[Preference]) -> list[tuple[list[str], str, str]]:
    """The prompt, the chosen and the rejected response of each row."""
    return [
        ([f"{m.role[0]}:{m.content}" for m in e.messages[:-1]], e.messages[-1].content,
         e.rejected[-1].content)
        for e in found.train
    ]  # fmt: skip


USER, GOOD, BAD = turn("user", "q"), turn("assistant", "good"), turn("assistant", "bad")
FORMS = {
    "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "conversations beside their prompt": {
        "prompt": "q", "prompt_id": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD],
        "score_chosen": 8.0, "score_rejected": 5.0,
    },
    "a prompt text with messages": {"question": "q", "chosen": [GOOD], "rejected": [BAD]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_gives_the_same_pair(tmp_path, form) -> None:
    found = load(jsonl(tmp_path / "t.jsonl", FORMS[form]))
    assert spoken(found) == [(["u:q"], "good", "bad")]


def test_tables_of_every_format_give_the_same_pairs(tmp_path) -> None:
    (tmp_path / "t.csv").write_text('prompt,chosen,rejected\n"q, r","a\nb",c\n')
    (tmp_path / "t.tsv").write_text("q\tyes\tno\nq, r\ta\\nb\tc\n")
    names = {"prompt": ["q, r"], "chosen": ["a\nb"], "rejected": ["c"]}
    pq.write_table(pa.table(names), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        assert spoken(load(tmp_path / name)) == [(["u:q, r"], "a\nb", "c")], name
    columns = {"prompt_column": "q", "chosen_column": "yes", "rejected_column": "no"}
    assert spoken(load(tmp_path / "t.tsv", **columns))[0][2] == "c"


def test_earlier_turns_and_system_messages_are_part_of_the_prompt(tmp_path) -> None:
    shared = [turn("system", "s"), USER, turn("assistant", "a"), turn("user", "r")]
    path = jsonl(tmp_path / "t.jsonl", {"chosen": [*shared, GOOD], "rejected": [*shared, BAD]})
    assert spoken(load(path)) == [(["s:s", "u:q", "a:a", "u:r"], "good", "bad")]


def test_rows_that_hold_no_pair_are_skipped_counted_and_named(tmp_path) -> None:
    said: list[str] = []
    other = turn("user", "another")
    rows = [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
        {"chosen": [USER, GOOD], "rejected": [other, BAD]},
        {"chosen": [USER, BAD], "rejected": [USER, GOOD]},
    ]
    found = load(jsonl(tmp_path / "t.jsonl", *rows), said)
    assert [each.number for each in found.train] == [1, 4]
    for name, row in (("identical", 2), ("other_prompt", 3)):
        assert found.report[name]["count"] == 1
        assert found.report[name]["rows"][0]["row"] == row
        assert any(f"row {row}" in text and "skipped" in text for text in said), said
    assert found.report["rows"] == 2
    with pytest.raises(DataError, match="no row is left"):
        load(jsonl(tmp_path / "t.jsonl", rows[1]))


def test_no_prompt_is_on_both_sides_and_repeated_pairs_are_counted(tmp_path) -> None:
    rows = [
        {"prompt": f"q{n % 20}", "chosen": f"good {n % 30}", "rejected": "bad"} for n in range(60)
    ]
    found = load(jsonl(tmp_path / "t.jsonl", *rows), validation_fraction=0.3)
    sides = [{each.opening for each in some} for some in (found.train, found.validation)]
    assert all(sides)
    assert not sides[0] & sides[1]
    # 60 rows repeat after 60; their texts after the least common multiple of 20 and 30.
    assert found.report["duplicates"]["count"] == 0
    again = load(jsonl(tmp_path / "t.jsonl", *rows, rows[0]))
    assert again.report["duplicates"]["rows"][0]["row"] == 61
    said: list[str] = []
    load(jsonl(tmp_path / "one.jsonl", *(rows[:1] * 4)), said, validation_fraction=0.3)
    assert any("no row is held out" in text for text in said)
    held = jsonl(tmp_path / "v.jsonl", {**rows[0], "chosen": "other"})
    overlap = load(tmp_path / "t.jsonl", validation_files=[str(held)]).report["overlap"]
    assert overlap["count"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "empty response"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "empty response"),
        ({"prompt": "q", "chosen": [USER], "rejected": [USER, BAD]}, "the user's"),
        ({"prompt": "q", "chosen": [], "rejected": [BAD]}, "not a list of messages"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen'"),
        ({"prompt": "r", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "does not begin with"),
        ({"prompt": "q", "chosen": '[{"role": "user"}]', "rejected": "b"}, "written as text"),
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"chosen": "a", "rejected": "b"}, "data.prompt_column"),
        ({"prompt": [turn("robot", "q")], "chosen": [GOOD], "rejected": [BAD]}, "'robot'"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, said) -> None:
    with pytest.raises(DataError) as caught:
        load(jsonl(tmp_path / "t.jsonl", *([FORMS["texts"]] if len(row) == 3 else []), row))
    text = f"{caught.value.what} {caught.value.where} {caught.value.next}"
    assert said in text
    assert "t.jsonl" in text
