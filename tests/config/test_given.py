"""Keywords of a call mean what the same keys mean in YAML, and are answered in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config.checks import Faults
from llmkit.config.given import GivenOption
from llmkit.config.load import LoadedConfig, load_config, read_keywords
from llmkit.config.suggestions import Writing
from llmkit.config.types import Form, as_yaml_value


def read(*keywords: tuple[str, str, Any], path: Path | None = None) -> tuple[LoadedConfig, Faults]:
    wrong = Faults("pretrain")
    given = [GivenOption(*keyword) for keyword in keywords]
    return read_keywords("pretrain", path, given, wrong), wrong


def section(name: str, value: Any) -> tuple[str, str, Any]:
    return name, name, value


KEYWORDS = (
    ("text", "data.train_files", Path("a b.txt")),
    section("seed", np.int64(3)),
    section("train", {"learning_rate": np.float32(0.5), "max_steps": 7, "compile": True}),
    section("model", {"config": {"hidden_size": 8}}),
    section("data.document", "line"),
    section("generation", {"stop": ("a", "1")}),
)


def test_keywords_are_the_keys_of_their_sections() -> None:
    found, wrong = read(*KEYWORDS)
    assert not wrong
    config = found.config
    assert config.data.train_files == ("a b.txt",)
    assert (config.seed, config.train.learning_rate, config.train.max_steps) == (3, 0.5, 7)
    assert config.train.compile is True
    assert config.model.config == {"hidden_size": 8}
    assert config.generation.stop == ("a", "1")
    assert config.data.document == "line"


def test_keywords_are_written_as_the_arguments_that_mean_the_same() -> None:
    found, _ = read(*KEYWORDS)
    assert 'data.train_files="a b.txt"' in found.own
    again = load_config("pretrain", None, found.own).config
    assert again.model_dump() == found.config.model_dump()


def test_keywords_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {max_steps: 1}\nseed: 4\n")
    found, wrong = read(section("train", {"max_steps": 7}), path=path)
    assert not wrong
    assert (found.config.train.max_steps, found.config.seed) == (7, 4)


def test_a_key_that_is_given_twice_is_refused() -> None:
    _, wrong = read(section("train", {"max_steps": 7}), section("train.max_steps", 8))
    [(_, line)] = wrong.found
    assert line.endswith("train.max_steps: is given twice (argument train); keep one")


@pytest.mark.parametrize(
    ("name", "text", "written"),
    [
        ("seed", "5", "`seed=5`"),
        ("output_dir", "runs/a", '`output_dir="runs/a"`'),
        ("train.compile", "true", '`train={"compile": True}`'),
        ("model.lora.r", "8", '`model={"lora": {"r": 8}}`'),
        ("data.label_separator", ",", '`data={"label_separator": ","}`'),
        ("train.max_steps", "null", '`train={"max_steps": None}`'),
    ],
)
def test_a_correction_can_be_copied_into_the_call(name: str, text: str, written: str) -> None:
    assert Writing(Form.KEYWORD)(name, text) == written


def test_values_of_python_become_those_of_yaml() -> None:
    given = {1: (Path("a"), np.float64(0.5)), "x": [np.int32(2), True, None, "text"]}
    assert as_yaml_value(given) == {"1": ["a", 0.5], "x": [2, True, None, "text"]}
    assert [type(each) for each in as_yaml_value([np.int32(2), True])] == [int, bool]
    assert as_yaml_value(each for each in "ab") == ["a", "b"]
