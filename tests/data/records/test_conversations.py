"""Prompts with responses, and chats, as they stand in files."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records import conversation_sets, conversations
from llmkit.errors import DataError

MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a\n"},
]


@contextmanager
def watch(label: str, total: int):
    yield lambda n: None


def load(path: Path, said: list[str] | None = None, **data) -> conversation_sets.Chats:
    keys = {"train_files": [str(path)], "validation_fraction": 0.0, **data}
    config = Config.model_validate({"data": keys})
    told = said if said is not None else []
    return conversation_sets.load_conversations(
        config, Sources(config), watch, told.append, told.append
    )


def said_in(found: conversation_sets.Chats) -> list[tuple[tuple[str, str], ...]]:
    return [tuple(tuple(message) for message in each.messages) for each in found.train]


def test_prompts_and_responses_are_the_same_in_every_format(tmp_path) -> None:
    table = [("a, b", "c\nd"), ('say "x"', "y")]
    wanted = [(("user", prompt), ("assistant", response)) for prompt, response in table]
    (tmp_path / "t.csv").write_text('prompt,response\n"a, b","c\nd"\n"say ""x""",y\n')
    lines = [json.dumps({"response": r, "id": 3, "prompt": p}) for p, r in table]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    names = {"question": [p for p, _ in table], "answer": [r for _, r in table]}
    pq.write_table(pa.table(names), tmp_path / "t.parquet")
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        assert said_in(load(tmp_path / name)) == wanted, name
    (tmp_path / "t.tsv").write_text("p\tr\none\ttwo\n")
    found = load(tmp_path / "t.tsv", prompt_column="p", response_column="r")
    assert said_in(found) == [(("user", "one"), ("assistant", "two"))]


def test_chats_are_the_same_in_jsonl_and_parquet(tmp_path) -> None:
    wanted = [tuple((m["role"], m["content"]) for m in MESSAGES)]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": MESSAGES, "prompt": "u"}) + "\n")
    mixed = [{**MESSAGES[0], "name": None}, *MESSAGES[1:]]
    pq.write_table(pa.table({"messages": [mixed]}), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        said: list[str] = []
        assert said_in(load(tmp_path / name, said)) == wanted
        assert "data.messages_column=messages" in said[0]


def test_an_instruction_and_its_input_are_one_prompt(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("instruction,input,output\ndo,it,done\ngo,,gone\n")
    said: list[str] = []
    found = load(tmp_path / "t.csv", said)
    assert [each.contents for each in found.train] == [("do\n\nit", "done"), ("go", "gone")]
    assert "data.prompt_column=[instruction, input]" in said[0]


@pytest.mark.parametrize(
    "head", ["a,b", "prompt,text", "prompt,question,response", "prompt,response,answer"]
)
def test_columns_that_are_not_clear_are_asked_for(tmp_path, head) -> None:
    path = tmp_path / "t.csv"
    path.write_text(head + "\n" + ",".join(f"x{k}" for k, _ in enumerate(head.split(","))) + "\n")
    with pytest.raises(DataError, match="not clear") as fault:
        load(path)
    assert "the columns are" in fault.value.next


def test_conversations_that_begin_alike_stay_on_one_side(tmp_path) -> None:
    lines = [f"ask {k // 3},say {k}" for k in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["prompt,response", *lines]))
    found = load(tmp_path / "t.csv", validation_fraction=0.3)
    train, held = ({each.opening for each in part} for part in (found.train, found.validation))
    assert len(found.train) + len(found.validation) == 60
    assert len(found.validation) == 18
    assert not train & held
    assert found.report["duplicates"]["count"] == 0


def test_repeats_overlap_and_empty_prompts_are_reported(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response\nx,1\ny,2\nx,1\nx,3\n,4\n")
    (tmp_path / "b.csv").write_text("prompt,response\ny,9\nz,9\n")
    said: list[str] = []
    found = load(tmp_path / "a.csv", said, validation_files=[str(tmp_path / "b.csv")])
    report = found.report
    assert [row["row"] for row in report["duplicates"]["rows"]] == [3]
    assert [row["row"] for row in report["overlap"]["rows"]] == [1]
    assert [row["row"] for row in report["blank"]["rows"]] == [5]
    assert report["splits"] == {"train": {"rows": 5}, "validation": {"rows": 2}}
    assert sum("row" in line for line in said) >= 3


def test_every_empty_response_is_listed(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("prompt,response\nx,1\ny,\nz, \n")
    with pytest.raises(DataError, match="2 rows") as fault:
        load(tmp_path / "t.csv")
    assert "rows 2, 3" in fault.value.where


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
KEYS = st.sampled_from(["role", "content", "name"]) | st.text(max_size=3)
ROLES = st.sampled_from([*conversations.ROLES, "tool"])
VALUES = st.recursive(
    SCALARS | ROLES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
TALKS = st.lists(st.fixed_dictionaries({"role": ROLES | VALUES, "content": VALUES}), max_size=4)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(VALUES | TALKS, min_size=1, max_size=3))
def test_whatever_holds_messages_is_read_or_reported_by_row(tmp_path, rows) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found, fault = None, None
    try:
        found = load(path)
    except DataError as error:
        fault = error
    if found is None:
        assert fault is not None
        assert "t.jsonl" in fault.where
        return
    assert [len(each.messages) for each in found.train] == [len(row) for row in rows]
    assert all(each.messages[-1].role == "assistant" for each in found.train)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_content_in_parts_is_joined_where_all_of_it_is_text(tmp_path, suffix) -> None:
    def row(*parts: dict[str, str]) -> dict[str, object]:
        answer = [{"type": "text", "text": "yes"}]
        said = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]
        return {"messages": said}

    def write(*rows: dict[str, object]) -> Path:
        path = tmp_path / f"t.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        else:
            path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return path

    hello, you = {"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}
    found = load(write(row(hello, you)))
    assert said_in(found) == [(("user", "Hello, you"), ("assistant", "yes"))]
    picture = {"type": "image_url", "image_url": "http://example.com/a.png"}
    with pytest.raises(DataError, match="data row 2: message 1 has a part of type 'image_url'"):
        load(write(row(hello), row(you, picture)))


def test_a_table_of_prompts_without_rows_is_named(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("prompt,response\n")
    with pytest.raises(DataError, match="no rows") as fault:
        load(tmp_path / "t.csv")
    assert "t.csv" in fault.value.where
