"""Domains that are to be found, in a config: their names, their weights, and what excludes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.load import as_yaml, load_config
from llmkit.errors import ConfigError

FOUND = "data:\n  train_files: text.txt\n  domains: auto\n  num_domains: 3\n"


def read(tmp_path: Path, text: str, *overrides: str, command: str = "pretrain"):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(command, path, overrides)


def refused(tmp_path: Path, text: str, *overrides: str, command: str = "pretrain") -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *overrides, command=command)
    return caught.value.where.replace(f"{tmp_path}/", "")


def test_domains_to_be_found_have_names_before_they_are_found(tmp_path: Path) -> None:
    data = read(tmp_path, FOUND).config.data
    assert {name: domain.weight for name, domain in data.mixture.items()} == {
        "domain-0": "auto", "domain-1": "auto", "domain-2": "auto"
    }  # fmt: skip
    assert len(read(tmp_path, FOUND.replace("  num_domains: 3\n", "")).config.data.mixture) == 4


def test_their_weights_may_be_given(tmp_path: Path) -> None:
    weights = [f"data.mixture.domain-{n}.weight={n}" for n in range(3)]
    data = read(tmp_path, FOUND, *weights).config.data
    assert [domain.weight for domain in data.mixture.values()] == [0, 1, 2]
    assert "domain-2 has no weight" in refused(tmp_path, FOUND, *weights[:2])
    assert read(tmp_path, FOUND, "data.mixture_temperature=3").config.data.mixture_temperature == 3


def test_one_of_them_may_have_an_expert(tmp_path: Path) -> None:
    model = "model.name_or_path=runs/seed"
    data = read(tmp_path, FOUND, "data.expert=domain-1", model).config.data
    assert [domain.weight for domain in data.mixture.values()] == [0, 1, 0]
    message = refused(tmp_path, FOUND, "data.expert=domain-3", model)
    assert "the domains are domain-0, domain-1, domain-2" in message


def test_they_can_be_written_out_and_read_back(tmp_path: Path) -> None:
    weights = ", ".join(f"domain-{n}: {{weight: {n}}}" for n in range(3))
    config = read(tmp_path, f"{FOUND}  mixture: {{{weights}}}\n").config
    assert read(tmp_path, as_yaml(config)).config == config


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        (FOUND, "data.mixture.poems.files=p", "'poems' cannot be combined with data.domains=auto"),
        (FOUND, "data.mixture.domain-7.weight=1", "finds the domains domain-0 to domain-2"),
        (FOUND, "data.mixture.domain-1.files=p", "the text of domain-1 is found"),
        (FOUND, "data.domains=topics", "should be"),
        (FOUND, "data.num_domains=1", "should be int in [2, 256]"),
        ("data: {train_files: text.txt}", "data.num_domains=3", "add data.domains=auto"),
        (FOUND, "train.metric_for_best_model=loss/poems", "write one of domain-0"),
    ],
)
def test_what_excludes_them_is_refused(tmp_path: Path, text, change, words) -> None:
    assert words in refused(tmp_path, text, change)


def test_they_do_not_concern_labels(tmp_path: Path) -> None:
    assert read(tmp_path, FOUND, command="finetune").config.data.domains == "auto"
    assert "data.domains" in refused(tmp_path, "{}", "data.domains=auto", command="finetune")
