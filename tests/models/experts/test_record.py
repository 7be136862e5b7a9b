"""The record of experts survives a file, and names what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.errors import DataError, Unsafe
from llmkit.models.experts import record as records
from tests.models.experts.families import branches, sources


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    written = sources(branches("llama", 1), names="诗")[0].record
    records.write_experts(tmp_path, written)
    found = records.read_experts(tmp_path)
    assert found is not None
    assert (found.kind, found.seed, found.tokenizer, found.frozen) == (
        "branch", "seed", "tokenizer", "none",
    )  # fmt: skip
    (expert,), (original,) = found.experts, written.experts
    assert (expert.name, expert.weights) == ("诗", original.weights)
    assert all(
        torch.equal(tensor, original.statistics.tensors()[name])
        for name, tensor in expert.statistics.tensors().items()
    )
    assert found.dense["model_type"] == "llama"


@pytest.mark.parametrize("name", ["../a", "a/b", "..", ""])
def test_a_name_that_leads_to_another_directory_is_unsafe(name: str, tmp_path: Path) -> None:
    records.write_experts(tmp_path, sources(branches("llama", 1), names=["a"])[0].record)
    text = (tmp_path / records.FILE).read_text().replace('"name": "a"', f'"name": "{name}"')
    (tmp_path / records.FILE).write_text(text)
    with pytest.raises(Unsafe):
        records.read_experts(tmp_path)


def test_a_model_without_experts_has_no_record(tmp_path: Path) -> None:
    assert records.read_experts(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "kind": "moe"}', '{"format": 99}'])
def test_a_damaged_record_is_bad_data(text, tmp_path: Path) -> None:
    (tmp_path / records.FILE).write_text(text)
    with pytest.raises(DataError) as refused:
        records.read_experts(tmp_path)
    assert records.FILE in refused.value.where


def test_the_hash_of_a_state_depends_on_names_and_values_alone() -> None:
    (one,), (other,) = (sources(branches("llama", 1)) for _ in range(2))
    assert records.state_hash(one.read()) == records.state_hash(other.read()) == one.expert.weights
    changed = {**one.read(), "model.norm.weight": one.read()["model.norm.weight"] + 1}
    assert records.state_hash(changed) != one.expert.weights
