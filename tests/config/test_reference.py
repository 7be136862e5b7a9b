"""What is printed of a config reads back as the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.config import keys, reference
from llmkit.config.load import as_yaml, load_config
from llmkit.config.schema import Config

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0$~"), max_size=20)
"""Paths in which nothing is expanded."""
WHOLE = st.integers(-(2**63), 2**63 - 1)
FREE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONFIGS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "output_dir": st.none() | PATHS,
        "seed": st.integers(0, 2**63 - 1),
        "model": st.fixed_dictionaries({"config": st.dictionaries(TEXTS, FREE, max_size=3)}),
        "data": st.fixed_dictionaries({"train_files": st.lists(PATHS, max_size=3).map(tuple)}),
        "train": st.fixed_dictionaries(
            {"learning_rate": st.just("auto") | st.floats(1e-300, 1e30), "compile": st.booleans()}
        ),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIGS)
def test_a_printed_config_reads_back_as_the_same_config(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    config = Config.model_validate(values)
    text = as_yaml(config, {"seed": "command line"})
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config("pretrain", path, []).config == config


def test_a_printed_config_means_the_same_to_other_readers_of_yaml() -> None:
    config = load_config("pretrain", None, ["train.learning_rate=3e-5", "output_dir=no"]).config
    values = yaml.safe_load(as_yaml(config))
    assert Config.model_validate(values).model_dump() == config.model_dump()


def test_each_value_stands_beside_its_source(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  max_steps: 5\n")
    found = load_config("pretrain", path, ["train.learning_rate=3e-4"])
    lines = [" ".join(line.split()) for line in as_yaml(found.config, found.sources).splitlines()]
    assert f"max_steps: 5 # {path}:2" in lines
    assert "learning_rate: 0.0003 # command line" in lines
    assert "seed: 0 # default" in lines


def test_without_sources_there_are_no_comments() -> None:
    assert "#" not in as_yaml(Config())


def test_every_key_of_the_schema_is_documented() -> None:
    table = reference.key_table()
    for key in keys.all_keys().values():
        assert f"| `{key.name}` |" in table
        assert key.meaning.endswith(".")
        assert key.takes
        assert key.jobs, f"{key.name} says nowhere what it applies to"
        assert "|" not in key.meaning + key.takes


def test_the_words_of_a_key_are_those_of_its_type() -> None:
    words = {key.name: key.takes for key in keys.all_keys().values()}
    assert words["train.learning_rate"] == "`auto` or float > 0"
    assert words["train.micro_batch_size"] == "`auto` or int >= 1"
    assert words["train.adam_beta1"] == "float in [0, 1)"
    assert words["train.precision"] == "`auto`, `fp32` or `bf16`"
    assert words["data.train_files"] == "path or list of paths"
    assert words["train.plan"] == "list of list of int >= 0"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("train.lerning_rate", "train.learning_rate"),
        ("trian.max_steps", "train.max_steps"),
        ("train.maxsteps", "train.max_steps"),
        ("generation.temprature", "generation.temperature"),
        ("model.temprature", "generation.temperature"),
        ("sed", "seed"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(path: str, name: str) -> None:
    found = keys.nearest(tuple(path.split(".")))
    assert found is not None
    assert found.name == name


def test_nothing_is_near_to_nonsense() -> None:
    assert keys.nearest(("zzzzz",)) is None
