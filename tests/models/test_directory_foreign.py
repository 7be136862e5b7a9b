"""What stands where a model is asked for is named for what it is, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.errors import InputNotFound, LlmkitError, NoValidCheckpoint, Unsafe
from llmkit.models.directory import locate_model

SAFE = "model.safetensors"


def holding(directory: Path, *names: str, **contents: object) -> Path:
    """A directory with files of these names, some of them with JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"")
    for stem, value in contents.items():
        (directory / f"{stem}.json").write_text(json.dumps(value))
    return directory


def refused(path: Path) -> LlmkitError:
    with pytest.raises(LlmkitError) as fault:
        locate_model(str(path))
    return fault.value


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "peft_type": "LORA"}
    adapter = holding(tmp_path, "adapter_model.safetensors", adapter_config=settings)
    fault = refused(adapter)
    assert isinstance(fault, InputNotFound)
    assert "LoRA adapter of meta-llama/Llama-3.2-1B" in fault.what
    assert "merge_and_unload" in fault.next


@pytest.mark.parametrize("settings", [{}, [], {"peft_type": "IA3"}])
def test_an_adapter_that_says_little_is_still_one(tmp_path: Path, settings: object) -> None:
    assert "adapter" in refused(holding(tmp_path, adapter_config=settings)).what


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model-q4.gguf"], "GGUF"), (["model.onnx"], "ONNX"), (["tf_model.h5"], "TensorFlow"),
        (["flax_model.msgpack"], "Flax"), (["model.onnx", "config.json"], "ONNX"),
        (["config.json", "tokenizer.json"], "no weights"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer, not a model"),
        (["vocab.txt"], "tokenizer, not a model"), (["model_index.json"], "diffusers"),
        (["modules.json", "0_Transformer/config.json"], "sentence-transformers"),
        (["refs/main", "snapshots/abc/config.json"], "hub cache"),
        (["params.json", "consolidated.safetensors"], "publisher's format"),
        (["notes.txt"], "no config.json"), ([], "no config.json"),
    ],
)  # fmt: skip
def test_a_directory_is_named_for_what_it_holds(tmp_path: Path, names: list[str], what) -> None:
    fault = refused(holding(tmp_path / "it", *names))
    assert isinstance(fault, InputNotFound)
    assert what in fault.what
    assert str(tmp_path / "it") in fault.where
    assert fault.next


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "last.ckpt"])
def test_a_pickle_is_refused_as_unsafe(tmp_path: Path, name: str) -> None:
    directory = holding(tmp_path / "it", name, config={"model_type": "llama"})
    assert isinstance(refused(directory), Unsafe)
    assert isinstance(refused(directory / name), Unsafe)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("model.gguf", b"GGUF", "GGUF"), ("model-without-suffix", b"GGUF\3", "GGUF"),
        ("model.onnx", b"", "ONNX"), ("model.zip", b"PK", "archive"),
        (SAFE, b"", "is a file"), ("config.json", b"{}", "is a file"),
    ],
)  # fmt: skip
def test_a_file_is_named_for_what_it_is(tmp_path: Path, name, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    fault = refused(path)
    assert what in fault.what
    assert fault.next


def test_the_directory_of_checkpoints_names_its_run(tmp_path: Path) -> None:
    run = holding(tmp_path / "run", "checkpoints/step-0000000010/config.json", "run.json")
    fault = refused(run / "checkpoints")
    assert str(run) in fault.next


def test_a_directory_of_runs_names_one_of_them(tmp_path: Path) -> None:
    holding(tmp_path / "runs" / "mine", "run.json")
    assert f"such as {tmp_path / 'runs' / 'mine'}" in refused(tmp_path / "runs").next


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    assert isinstance(refused(holding(tmp_path / "run", "run.json")), NoValidCheckpoint)


def test_weights_beside_other_files_are_a_model(tmp_path: Path) -> None:
    names = (SAFE, "pytorch_model.bin", "model.onnx", "adapter_config.json", "training_args.bin")
    directory = holding(tmp_path, *names, config={"model_type": "llama"})
    assert locate_model(str(directory)) == str(directory)
