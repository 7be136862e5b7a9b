"""The domains of a mixture in a config: how they are written, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.load import as_yaml, load_config
from llmkit.errors import ConfigError

TWO = """data:
  mixture:
    novels: {files: novels, weight: 3}
    code:
      files: [a.py, b]
      weight: 1
"""


def read(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config("pretrain", path, overrides)


def said(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *overrides)
    return caught.value.where.replace(f"{tmp_path}/", "")


def test_domains_have_names_of_the_users_own(tmp_path: Path) -> None:
    found = read(tmp_path, TWO, "data.mixture.code.weight=0", "data.mixture.poems.files=p",
                 "data.mixture.poems.weight=.5")  # fmt: skip
    mixture = found.config.data.mixture
    assert list(mixture) == ["novels", "code", "poems"]
    assert mixture["code"].files == ("a.py", "b")
    assert [domain.weight for domain in mixture.values()] == [3, 0, 0.5]
    assert found.sources["data.mixture.code.weight"] == "command line"
    assert found.sources["data.mixture.novels.files"].endswith("run.yaml:3")


def test_a_mixture_written_out_reads_back_as_itself(tmp_path: Path) -> None:
    config = read(tmp_path, TWO).config
    assert read(tmp_path, as_yaml(config)).config == config


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("weight: 1", "weight: -1"), "run.yaml:6: data.mixture.code.weight", ">= 0"),
        (("weight: 1", "wieght: 1"), "run.yaml:6: data.mixture.code.wieght", "code.weight: 1`"),
        (("  files: [", "  text: ["), "run.yaml:5: data.mixture.code.text", "mixture.code.files"),
        (("      weight: 1\n", ""), "run.yaml:3: data.mixture", "code has no weight"),
        (("code:", "a.b:"), "run.yaml:3: data.mixture", "'a.b'"),
        (("data:", "data:\n  train_files: x"), "run.yaml:4: data.mixture", "data.train_files"),
        (("data:", "data:\n  mixture_temperature: 2"), "run.yaml:2: data.mix", "without weights"),
    ],
)
def test_a_fault_is_named_with_its_line_and_domain(tmp_path, change, place, words) -> None:
    message = said(tmp_path, TWO.replace(*change))
    assert any(place in line and words in line for line in message.split("\n"))


def test_weights_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    text = TWO.replace("weight: 3", "weight: 0").replace("weight: 1", "weight: 0.0")
    assert "all weights are 0 (novels, code)" in said(tmp_path, text)


def test_a_domain_is_keys_not_a_value(tmp_path: Path) -> None:
    message = said(tmp_path, "data:\n  mixture:\n    novels: novels.txt\n")
    such = "is a section; set one of its keys, such as `data.mixture.novels.files`"
    assert f"run.yaml:3: data.mixture.novels: {such}" in message


def test_a_domain_that_is_only_named_counts(tmp_path: Path) -> None:
    mixture = read(tmp_path, "data:\n  mixture:\n    novels:\n").config.data.mixture
    assert mixture["novels"].files == ()
