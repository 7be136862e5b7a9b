"""Tensors in files: divided by names and sizes alone, equal to those of plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llmkit.errors import Diverged
from llmkit.training.shards import files, model_files
from llmkit.training.shards.files import StoredTensors, TensorSet
from tests.harness import Server, contents
from tests.training.conftest import tiny_model

SIZES = st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.integers(0, 40), max_size=12)


@given(sizes=SIZES, largest=st.integers(4, 200))
def test_files_hold_each_tensor_once_in_the_usual_order_and_are_full(sizes, largest) -> None:
    groups = files.groups_of({name: torch.zeros(size) for name, size in sizes.items()})
    divided = files.division(groups, largest)
    names = [[name for group in file for name in group.outlines] for file in divided]
    assert [name for file in names for name in file] == sorted(sizes)
    for file, after in zip(divided, [*divided[1:], []], strict=True):
        held = sum(group.n_bytes for group in file)
        assert held <= largest or len(file) == 1
        assert not after or held + after[0].n_bytes > largest


def write(directory: Path, tensors: dict[str, torch.Tensor], largest: int) -> None:
    directory.mkdir()
    found = TensorSet("some", "the tensor", files.groups_of(tensors))
    facts = files.write_tensors(directory, found, None, largest)
    assert {name: facts[name] for name in facts} == {
        name: {"sha256": digest, "size": (directory / name).stat().st_size}
        for name, digest in contents(directory).items()
        if name.endswith(".safetensors")
    }


TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(4), "c": torch.tensor(2.0),
    "é": torch.ones(3, 2, dtype=torch.bfloat16), "none": torch.zeros(0, 4),
}  # fmt: skip


def test_a_file_is_that_of_the_safetensors_library_to_the_byte(tmp_path: Path) -> None:
    write(tmp_path / "ours", TENSORS, 1000)
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    ours = (tmp_path / "ours" / "some.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("largest", [1, 30, 1000])
def test_tensors_come_back_from_any_number_of_files(tmp_path: Path, largest: int) -> None:
    write(tmp_path / "set", TENSORS, largest)
    stored = StoredTensors(tmp_path / "set", "some")
    assert sorted(stored) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(stored[name], tensor)
        assert torch.equal(stored.like(name, tensor), tensor)
        assert stored.shape(name) == tuple(tensor.shape)


def test_the_single_file_of_an_earlier_llmkit_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "optimizer.safetensors")
    stored = StoredTensors(tmp_path, "optimizer")
    assert all(torch.equal(stored.like(name, TENSORS[name]), TENSORS[name]) for name in stored)
    assert len(list(stored)) == len(TENSORS)


@pytest.mark.parametrize("place", ["../some-1.safetensors", "/etc/passwd", "absent", 3])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, place: object) -> None:
    write(tmp_path / "set", TENSORS, 30)
    index = tmp_path / "set" / "some.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["a"] = place
    index.write_text(json.dumps(found))
    with pytest.raises((ValueError, OSError)):
        StoredTensors(tmp_path / "set", "some")


def test_a_tensor_that_is_not_finite_is_named_and_not_saved(tmp_path: Path) -> None:
    bad = {**TENSORS, "b": torch.tensor([1.0, torch.nan])}
    with pytest.raises(Diverged, match="the tensor b is not finite"):
        write(tmp_path / "set", bad, 30)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_model_in_one_file_has_the_tensors_of_save_pretrained(
    tmp_path: Path, architecture: str
) -> None:
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path / "theirs")
    files.write_tensors(tmp_path, model_files.model_tensors(model), None)
    ours, theirs = (
        StoredTensors(directory, "model") for directory in (tmp_path, tmp_path / "theirs")
    )
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if architecture == "llama":
        assert (tmp_path / "model.safetensors").read_bytes() == (
            tmp_path / "theirs" / "model.safetensors"
        ).read_bytes()


ARCHITECTURES = ("qwen3", "mixtral")


@pytest.fixture(scope="module")
def saved(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 1, 2 and 4 processes have saved, of whole and of sharded models."""
    root = tmp_path_factory.mktemp("saved")
    for count, architectures in ((1, ARCHITECTURES), (2, ARCHITECTURES), (4, ARCHITECTURES[:1])):
        keywords = {"root": str(root), "architectures": list(architectures)}
        for process in trials.start_processes(count, function="save_all", keywords=keywords):
            ended = process.end()
            assert ended.code == 0, ended.err
    return root


@pytest.mark.parametrize(("architecture", "counts"), [("qwen3", (2, 4)), ("mixtral", (2,))])
def test_any_number_of_processes_writes_the_same_bytes(
    saved: Path, architecture: str, counts: tuple[int, ...]
) -> None:
    expected = contents(saved / f"{architecture}-1-False")
    assert len(expected) > 15
    for count in counts:
        for sharded in (False, True):
            assert contents(saved / f"{architecture}-{count}-{sharded}") == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_transformers_reads_what_sharded_processes_wrote(
    saved: Path, architecture: str
) -> None:
    model = tiny_model(architecture, tie_word_embeddings=architecture == "qwen3")
    found, report = AutoModelForCausalLM.from_pretrained(
        saved / f"{architecture}-2-True", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights = found.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
