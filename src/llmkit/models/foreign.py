"""Recognize what a path holds instead of a safetensors model. Imports no heavy library."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.errors import InputNotFound, LlmkitError, Unsafe
from llmkit.storage import outputs

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_BY_SUFFIX = {
    ".gguf": "a GGUF file of llama.cpp",
    ".ggml": "a GGML file of llama.cpp",
    ".onnx": "an ONNX model",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".npz": "MLX weights",
    ".tflite": "a TensorFlow Lite model",
}
_ORIGINAL = "name the original Hugging Face directory, with config.json and *.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


def refusal_of_file(path: Path) -> LlmkitError:
    """The error for a file that was given instead of a model directory."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return _pickle(path.name, str(path))
    if _is_gguf(path):
        suffix = ".gguf"
    if suffix in _BY_SUFFIX:
        return _no_model(path, f"{path.name} is {_BY_SUFFIX[suffix]}", _ORIGINAL)
    if suffix in (".zip", ".gz", ".tar", ".tgz", ".zst"):
        return _no_model(path, f"{path.name} is an archive", "unpack it and name the directory")
    return _no_model(path, f"{str(path)!r} is a file", f"name its directory: {path.parent}")


def refusal_of_directory(path: Path) -> LlmkitError | None:
    """The error for a directory that holds something other than a model; None if it may hold a
    model."""
    models = [each for each in path.glob("*.safetensors") if not each.name.startswith("adapter_")]
    if (path / "adapter_config.json").is_file() and not models:
        return _adapter(path)
    if models:
        if (path / "config.json").is_file() or not (path / "params.json").is_file():
            return None
        return _no_model(
            path, f"{path} holds a model in its publisher's format (params.json)", _ORIGINAL
        )
    return _pipeline(path) or _other_weights(path) or _folder(path)


def _adapter(path: Path) -> LlmkitError:
    """The error for a LoRA adapter, or another adapter of peft."""
    try:
        settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, kind = settings["base_model_name_or_path"], settings.get("peft_type", "LORA")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        base, kind = None, "LORA"
    named = "LoRA" if kind == "LORA" else str(kind)
    return _no_model(
        path,
        f"{path} holds a {named} adapter of {base or 'an unnamed model'}, not a model",
        f"merge it first: peft.AutoPeftModelForCausalLM.from_pretrained({str(path)!r})"
        ".merge_and_unload().save_pretrained(NEW), then name NEW"
        + (f"; or start from --model {base}" if base else ""),
    )


def _pipeline(path: Path) -> LlmkitError | None:
    """The error for directories of libraries that keep their models in subdirectories."""
    if (path / "model_index.json").is_file():
        return _no_model(path, f"{path} holds a diffusers pipeline", "name a language model")
    inner = path / "0_Transformer"
    if (path / "modules.json").is_file() and inner.is_dir():
        return _no_model(path, f"{path} holds a sentence-transformers model", f"name {inner}")
    snapshots = sorted((path / "snapshots").glob("*"))
    if (path / "refs").is_dir() and snapshots:
        return _no_model(path, f"{path} is a directory of the hub cache", f"name {snapshots[-1]}")
    steps = outputs.checkpoints(path)
    if path.name == outputs.CHECKPOINTS and steps:
        where = f"name the run, {path.parent}, or one of them, such as {steps[-1]}"
        return _no_model(path, f"{path} holds the checkpoints of a run", where)
    return None


def _other_weights(path: Path) -> LlmkitError | None:
    """The error for weights in an unsupported format."""
    files = sorted(each for each in path.iterdir() if each.is_file())
    for each in files:
        if each.suffix.lower() in PICKLES and not each.name.startswith("training_args"):
            return _pickle(each.name, str(path))
    for each in files:
        if (what := _BY_SUFFIX.get(each.suffix.lower())) is not None:
            return _no_model(path, f"{path} holds {what} ({each.name})", _ORIGINAL)
    return None


def _folder(path: Path) -> LlmkitError | None:
    """The error for a directory without weights."""
    if (path / "config.json").is_file():
        return _no_model(
            path, "there are no weights (*.safetensors)", "check that the directory is complete"
        )
    if any(next(path.glob(pattern), None) for pattern in _TOKENIZERS):
        return _no_model(
            path,
            f"{path} holds a tokenizer, not a model",
            "name it in tokenizer.name_or_path, and a model with --model",
        )
    return None


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _no_model(path: Path, what: str, advice: str) -> InputNotFound:
    return InputNotFound(what, where=f"model.name_or_path: {path}", next=advice)


def _pickle(name: str, where: str) -> Unsafe:
    return Unsafe(
        f"the weights are a pickle ({name}), which can run code when it is loaded",
        where=where,
        next="convert them to safetensors if you trust them",
    )
