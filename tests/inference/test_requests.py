"""Prompts from every source, and the faults that are told before a model is loaded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config.schema import Config, GenerationConfig
from llmkit.data.readers.files import PipedInput, Sources
from llmkit.errors import ConfigError, DataError, InputNotFound, UsageError
from llmkit.inference import requests


def config(**settings: Any) -> Config:
    return Config(generation=GenerationConfig(**settings))


def read(config: Config, stdin: BinaryIO | None = None) -> requests.PromptRequests:
    piped = None if stdin is None else PipedInput(stdin, "stdin")
    return requests.read_requests(config, Sources(config, piped))


def texts(found: requests.PromptRequests) -> list[str]:
    return [request.prompt for request in found.items]


def test_a_pipe_holds_a_prompt_in_each_line_and_blank_ones_are_counted() -> None:
    found = read(config(), io.BytesIO("\ufeffa\n\n 你好 \r\nlast".encode()))
    assert texts(found) == ["a", " 你好 ", "last"]
    assert found.blank == 1


def test_a_line_that_is_not_utf8_is_named() -> None:
    with pytest.raises(DataError) as fault:
        read(config(), io.BytesIO(b"good\nbad \xff\n"))
    assert fault.value.where == "stdin:2"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "one\n\ntwo\n", ["one", "two"]),
        ("p.csv", 'id,prompt\n1,"a, b"\n2,c\n', ["a, b", "c"]),
        ("p.tsv", "prompt\tid\na b\t1\n", ["a b"]),
        ("p.jsonl", '{"prompt": "x"}\n\n{"prompt": ""}\n', ["x", ""]),
    ],
)
def test_a_file_holds_prompts_as_lines_rows_or_objects(
    name: str, content: str, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert texts(read(config(prompts_file=str(path)))) == expected


@pytest.mark.parametrize("column", ["prompt", "text", "body"])
@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.ndjson", "p.txt", "p", "p.json", "p.csv", "p.parquet"]
)
@pytest.mark.parametrize("piped", [True, False])
def test_prompts_are_read_by_column_and_keep_the_rest_of_their_rows(
    column: str, name: str, piped: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    rows = [{column: f"prompt {number}, and more", "id": number} for number in range(5)]
    if name == "p.csv":
        lines = [f'"{row[column]}",{row["id"]}' for row in rows]
        path.write_text("\n".join([f"{column},id", *lines]))
    elif name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "p.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"text_column": column} if column == "body" else {}
    given = {} if piped else {"prompts_file": str(path)}
    asked = Config.model_validate({"generation": given, "data": data})
    found = read(asked, io.BytesIO(path.read_bytes()) if piped else None)
    assert texts(found) == [row[column] for row in rows]
    assert [int(each.extra["id"]) for each in found.items] == [0, 1, 2, 3, 4]


def test_prompts_of_a_pipe_are_handed_on_as_they_arrive() -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return self.readline()

    piped = PipedInput(Slow(b"one\ntwo\n\nthree\n"), "stdin")
    found = requests.groups(config(), Sources(config(), piped))
    assert [texts(group) for group in found] == [["one"], ["two"], [], ["three"]]


def test_a_line_may_have_its_own_seed_and_length(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "x", "seed": 7, "max_new_tokens": 3}))
    (request,) = read(config(prompts_file=str(path))).items
    assert (request.seed, request.max_new_tokens) == (7, 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "y"}', "has no prompt"),
        ("[1]", "JSON list, not an object"),
        ('{"prompt": 3}', "'prompt' of this line should be text"),
        ('{"prompt": "x", "seed": true}', "'seed' of this line should be an int >= 0"),
        ('{"prompt": "x", "max_new_tokens": 0}', "should be an int >= 1"),
        ('{"prompt": "x"', "not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=said) as fault:
        read(config(prompts_file=str(path)))
    assert fault.value.where == f"{path}:3"


def test_no_prompt_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound):
        read(config(), io.BytesIO(b"\n\n"))
    with pytest.raises(InputNotFound):
        read(config(prompts_file=str(tmp_path / "none.txt")))
    with pytest.raises(UsageError):
        read(config(prompts=("a",), prompts_file="b.txt"))


@pytest.mark.parametrize(
    "settings",
    [
        {"system": "be kind"},
        {"choices": ("a",), "regex": "a"},
        {"choices": ("a",), "num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_beams": 2, "explain": 1},
        {"min_new_tokens": 70},
        {"do_sample": False, "num_return_sequences": 2},
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        requests.check_generation_settings(config(**settings))
