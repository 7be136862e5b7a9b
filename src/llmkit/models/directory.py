"""Recognize what a path holds instead of a safetensors model. Imports no heavy library."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from llmkit.config.types import EXPERT_NAME
from llmkit.errors import DataError, InputNotFound, LlmkitError, NoValidCheckpoint, Unsafe
from llmkit.storage import atomic, outputs, paths

ENSEMBLE = "llmkit_ensemble"
"""The model type of an ensemble of experts."""
EXPERTS_DIRECTORY = "experts"
"""The directory of an ensemble that holds a model directory for each expert."""
STATISTICS = "experts.safetensors"
"""Sums over the domains of experts; no weights."""

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
_MODELS = "use a directory with config.json, a run directory, or a hub name (OWNER/NAME)"
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
    tensors = [each for each in path.glob("*.safetensors") if each.name != STATISTICS]
    models = [each for each in tensors if not each.name.startswith("adapter_")]
    if (path / "adapter_config.json").is_file() and not models:
        return _adapter(path)
    if models:
        if (path / "config.json").is_file() or not (path / "params.json").is_file():
            return None
        return _no_model(
            path, f"{path} holds a model in its publisher's format (params.json)", _ORIGINAL
        )
    return None if _is_ensemble(path) else _pipeline(path) or _other_weights(path) or _folder(path)


def _is_ensemble(path: Path) -> bool:
    try:
        return read_json(path / "config.json").get("model_type") == ENSEMBLE
    except (InputNotFound, DataError):
        return False


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


def _folder(path: Path) -> LlmkitError:
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
    runs = sorted(each.parent for each in path.glob(f"*/{outputs.RUN}"))
    advice = f"name one of its runs, such as {runs[-1]}" if runs else _MODELS
    return _no_model(path, f"{path} holds no model (there is no config.json)", advice)


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


def locate_model(name_or_path: str) -> str:
    """The directory that holds the model, or the hub name unchanged.

    A run directory resolves to its final model, else its best, else its newest checkpoint. Raises
    InputNotFound for a missing directory, Unsafe for one whose files would run code or point
    outside it, and NoValidCheckpoint for a damaged directory of ours (weights are verified when
    they are loaded).
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        directory = model_in_run(path)
        check_directory(directory)
        return str(directory)
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path)
    if paths.looks_like_path(name_or_path) or not is_name:
        raise _missing_directory(path, name_or_path)
    return name_or_path


def _missing_directory(path: Path, name: str) -> LlmkitError:
    if path.exists():
        return refusal_of_file(path)
    near = [str(found) for found in paths.near(path) if found.is_dir()]
    return InputNotFound(
        f"there is no model directory {name!r}",
        where="model.name_or_path",
        next=f"did you mean {' or '.join(near)}?" if near else _MODELS,
    )


def locate_tokenizer(name_or_path: str) -> str:
    """The directory that holds a tokenizer, or its hub name; a run resolves to its model.

    Raises InputNotFound for a path that is not a directory.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(model_in_run(path))
    if not paths.looks_like_path(name_or_path):
        return name_or_path
    near = [str(found) for found in paths.near(path) if found.is_dir()]
    raise InputNotFound(
        f"{name_or_path} is not a directory with a tokenizer",
        where="tokenizer.name_or_path",
        next=f"did you mean {' or '.join(near)}?"
        if near
        else "use a directory that holds tokenizer.json, or a hub name such as gpt2",
    )


def check_directory(directory: Path) -> None:
    """Refuses, before loading anything, a model directory that is unsafe or has no weights."""
    if fault := refusal_of_directory(directory):
        raise fault
    config = read_json(directory / "config.json")
    hooks = [
        key
        for key in _all_keys(config)
        if key in ("auto_map", "trust_remote_code") or key.endswith("_implementation_internal")
    ]
    if hooks:
        raise Unsafe(
            f"config.json requests to run code ({', '.join(sorted(set(hooks)))})",
            where=str(directory / "config.json"),
            next="use a model that transformers supports without extra code, or remove the key if "
            "the model is yours",
        )
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = read_json(index).get("weight_map")
        for name in files.values() if isinstance(files, dict) else [files]:
            if not isinstance(name, str) or not atomic.is_safe(name):
                raise Unsafe(
                    f"the index names a file outside its directory: {name!r}",
                    where=str(index),
                    next="use a model whose index names only its own files",
                )
    if config.get("model_type") == ENSEMBLE:
        _check_experts(directory, config.get("experts"))
    check_whole(directory, weights=False)


def _check_experts(directory: Path, names: Any) -> None:
    """Refuses an ensemble that names a directory outside its own, or with an expert that is unsafe
    or no model."""
    where = str(directory / "config.json")
    if not isinstance(names, list) or not names:
        raise DataError(
            "the ensemble names no experts", where=where, next="check that the file is complete"
        )
    for name in names:
        if not isinstance(name, str) or not EXPERT_NAME.fullmatch(name):
            raise Unsafe(
                f"the ensemble names an expert outside its directory: {name!r}",
                where=where,
                next="use an ensemble that names only its own directories",
            )
        part = directory / EXPERTS_DIRECTORY / name
        if not part.is_dir() or _is_ensemble(part):
            raise DataError(
                f"the ensemble has no model of the expert {name}",
                where=str(part),
                next="check that the directory is complete",
            )
        check_directory(part)


def check_whole(directory: Path, weights: bool) -> None:
    """Raises NoValidCheckpoint if the weights, or else the other files, of a model that llmkit has
    written are damaged. The manifest of an ensemble covers its experts."""
    part = ""
    if directory.parent.name == EXPERTS_DIRECTORY and not atomic.is_signed(directory):
        directory, part = directory.parent.parent, f"{EXPERTS_DIRECTORY}/{directory.name}/"
    if not atomic.is_signed(directory):
        return

    def wanted(name: str) -> bool:
        return name.startswith(part) and name.endswith(".safetensors") is weights

    try:
        atomic.verify(directory, wanted)
    except atomic.DamagedError as damage:
        raise NoValidCheckpoint(
            f"the model is damaged: {damage}",
            where=str(directory),
            kept="all files",
            next="use a checkpoint of its run, or restore the file; if you changed it on purpose, "
            f"delete {atomic.MANIFEST}",
        ) from damage


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of a model directory; raises InputNotFound or DataError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputNotFound(
            f"there is no {path.name}", where=str(path.parent), next="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"invalid JSON: {error}", where=str(path), next="check that the file is complete"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            "should hold a JSON object", where=str(path), next="check that the file is complete"
        )
    return value


def model_in_run(path: Path) -> Path:
    """The directory of a run's model: the final one, else the best, else the newest checkpoint; any
    other directory unchanged. Raises NoValidCheckpoint for a run without a model."""
    if (path / "config.json").exists() or not (path / outputs.RUN).exists():
        return path
    if (path / outputs.FINAL).is_dir():
        return path / outputs.FINAL
    steps = outputs.checkpoints(path / outputs.CHECKPOINTS)
    if not steps:
        raise NoValidCheckpoint(
            "the run has no model yet",
            where=str(path),
            next="run its command again to train it further",
        )
    check_whole(steps[-1], weights=False)
    best = read_json(steps[-1] / outputs.STATE)["state"]["best_step"]
    named = [d for d in steps if best is not None and int(d.name[5:]) == best]
    return (named or steps)[-1]


def _all_keys(value: Any) -> list[str]:
    """The keys of nested JSON at every depth, without recursion."""
    found: list[str] = []
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            found += value
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
    return found


_SUFFIXES = (".safetensors", ".json", ".jinja")


def content_identity(location: str, revision: str | None) -> str:
    """The sha256 of a directory's weights, configs and tokenizer; for a hub model, its name and
    revision."""
    whole, directory = hashlib.sha256(), Path(location)
    if not directory.is_dir():
        return f"{location} {revision or ''}".strip()
    places = ("*", f"{EXPERTS_DIRECTORY}/*/*")
    files = [path for place in places for end in _SUFFIXES for path in directory.glob(place + end)]
    for path in sorted(files):
        if path.name != atomic.MANIFEST:
            with path.open("rb") as file:
                whole.update(f"{path.relative_to(directory).as_posix()} ".encode())
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
