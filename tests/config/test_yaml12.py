"""Hostile and broken files: each is refused at once, by name, with its line, and runs nothing."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from llmkit.config import yaml12
from llmkit.errors import ConfigError, InputNotFound, LlmkitError

HOSTILE = {
    "bomb": (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases are not read", 2),
    "cycle": (b"a: &a [*a]", "aliases are not read", 1),
    "deep list": (b"a: 1\nb: " + b"[" * 5000, "nested deeper", 2),
    "deep mapping": (b"{a: " * 5000, "nested deeper", 1),
    "many values": (b"\n".join(b"k%d: 1" % i for i in range(90_000)), "10,000 values", 5000),
    "tag": (b"a: 1\nb: !!python/object/apply:os.system [x]", "tags are not read", 2),
    "key tag": (b"!!python/name:os.system a: 1", "tags are not read", 1),
    "plain tag": (b"a: !!str 1", "tags are not read", 1),
    "nul": (b"a: 1\nb: \0", "U+0000", 2),
    "escape": (b"a: \x1b[31m", "U+001B", 1),
    "latin-1": (b"a: 1\nb: caf\xe9\n", "byte 11 (0xe9) is not UTF-8", 2),
    "utf-16": ("a: 1".encode("utf-16"), "not UTF-8", 1),
    "surrogate": (b'a: 1\nb: "\\ud800"', "surrogate", 2),
    "big number": (b"a: 1\nb: " + b"9" * 9000, "64 bits", 2),
    "empty": (b"", "is empty", 1),
    "comment": (b"# nothing\n", "is empty", 1),
    "list": (b"- a\n- b\n", "does not hold keys", 1),
    "text": (b"It is a truth.\n", "does not hold keys", 1),
    "two documents": (b"a: 1\n---\nb: 2\n", "second document", 2),
    "list as key": (b"a: 1\n? [b]\n: 1\n", "key is not text", 2),
    "tab": (b"a:\n\tb: 1\n", "not YAML in column 1", 2),
    "colon": (b"a: b: c\n", "not YAML in column 5", 1),
    "open quote": (b"a: 'b\n", "not YAML", 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_broken_file_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    content, said, line = HOSTILE[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        yaml12.read_yaml(path)
    assert said in caught.value.what
    assert caught.value.where == f"{path}:{line}"
    assert caught.value.next


def test_size_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a: " + b"x" * 50_000_000)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ConfigError, match="larger than"):
        yaml12.read_yaml(path)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_the_slowest_file_that_is_allowed_takes_less_than_a_second(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_bytes(b"\n".join(b"k%d: 1" % i for i in range(4_990)))
    start = time.process_time()
    assert len(yaml12.read_yaml(path).value) == 4_990
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["missing.yaml", ".", "no/such/directory.yaml", "a\0b"])
def test_what_cannot_be_opened_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound) as caught:
        yaml12.read_yaml(tmp_path / name)
    assert caught.value.exit_code == 66


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text("seed: 1")
    with pytest.raises(LlmkitError) as caught:
        yaml12.read_yaml(tmp_path / "pretrian.yaml")
    assert "pretrain.yaml" in caught.value.next


def test_every_key_has_its_line_and_its_text_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeff# first\nseed: 010\ntrain:\n  lr: 3e-4\n  x: {y: 'z'}\n")
    document = yaml12.read_yaml(path)
    assert document.value == {"seed": 10, "train": {"lr": 3e-4, "x": {"y": "z"}}}
    assert {key: (mark.line, mark.text) for key, mark in document.marks.items()} == {
        ("seed",): (2, "010"),
        ("train",): (3, "{lr: 0.0003, x: {y: z}}"),
        ("train", "lr"): (4, "3e-4"),
        ("train", "x"): (5, "{y: z}"),
        ("train", "x", "y"): (5, "z"),
    }


def test_keys_are_text_as_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("0: a\nno: b\n")
    assert yaml12.read_yaml(path).value == {"0": "a", "no": "b"}


def test_a_repeated_key_is_reported_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    assert yaml12.read_yaml(path).repeats == [yaml12._Repeat(("a",), 3, 1)]


@pytest.mark.parametrize("text", ["a #b", "#", "[1] # x", "null #"])
def test_a_value_never_loses_its_end_to_a_comment(text: str) -> None:
    with pytest.raises(ValueError, match="comment"):
        yaml12.parse_scalar(text)


def test_a_quoted_hash_stays() -> None:
    assert yaml12.parse_scalar("'a #b'") == "a #b"
    assert yaml12.parse_scalar("a#b") == "a#b"
