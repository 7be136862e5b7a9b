"""A model that exists, from a hub name, a directory or one of our runs: whole, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from llmkit import durable
from llmkit.errors import DataError, HubUnreachable, InputNotFound, NoValidCheckpoint, Unsafe
from llmkit.models import architectures, build, hub

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def locate(name_or_path: str) -> str:
    """The directory that holds the model, or the hub name as it is.

    A run directory stands for its final model, else its best, else its newest checkpoint.
    Raises InputNotFound for a path that is none, Unsafe for a directory whose files would run code
    or point outside of it, and NoValidCheckpoint for one of ours that is damaged (its weights are
    looked at when they are loaded).
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        directory = _model_in_run(path)
        check_directory(directory)
        return str(directory)
    looks_like_path = (
        path.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    )
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path):
        raise InputNotFound(
            f"there is no model directory {name_or_path!r}",
            where="model.name_or_path",
            next="give a directory with config.json, a run directory, or a hub name (OWNER/NAME)",
        )
    return name_or_path


def load_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """The transformers config of a model, without its weights."""
    return _from_pretrained(AutoConfig, locate(name_or_path), revision)


def causal_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """The transformers config of a causal language model, without its weights.

    Raises DataError for another kind: transformers alone would give it a head of random numbers.
    """
    shape = load_config(name_or_path, revision)
    known = architectures.known(build.LANGUAGE_MODEL.names, build.LANGUAGE_MODEL.mapping)
    own = shape.architectures or []
    if shape.model_type not in known or (own and not set(own) & set(known.values())):
        raise DataError(
            f"this is no causal language model but a {(own or [shape.model_type])[0]}",
            where=f"{name_or_path} (model.name_or_path)",
            next="name a model that was trained to write text; `llmkit predict` asks a classifier",
        )
    return shape


def load_causal_model(name_or_path: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model in fp32, with every weight from its file.

    Raises DataError when a weight is missing or does not fit: transformers alone would fill it
    with random numbers and go on.
    """
    return load_model(AutoModelForCausalLM, name_or_path, revision)


def load_masked_model(name_or_path: str, revision: str | None = None) -> PreTrainedModel:
    """A masked language model in fp32, with every weight from its file, as a causal one is."""
    return load_model(AutoModelForMaskedLM, name_or_path, revision)


def load_classifier(name_or_path: str, revision: str | None = None) -> PreTrainedModel:
    """A finished classifier in fp32, with every weight of body and head from its file."""
    return load_model(AutoModelForSequenceClassification, name_or_path, revision)


def check_directory(directory: Path) -> None:
    """Refuses, before anything is loaded, a model directory that is unsafe or has no weights."""
    config = read_json(directory / "config.json")
    hooks = [
        key
        for key in _all_keys(config)
        if key in ("auto_map", "trust_remote_code") or key.endswith("_implementation_internal")
    ]
    if hooks:
        raise Unsafe(
            f"config.json asks for code to be run ({', '.join(sorted(set(hooks)))})",
            where=str(directory / "config.json"),
            next="use a model that transformers knows by itself, or remove the key if it is yours",
        )
    if not list(directory.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
        if pickles:
            raise Unsafe(
                f"the weights are a pickle ({pickles[0]}), which can run code when it is read",
                where=str(directory),
                next="convert them to safetensors where you trust them",
            )
        raise InputNotFound(
            "there are no weights (*.safetensors)", where=str(directory), next="check the path"
        )
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = read_json(index).get("weight_map")
        for name in files.values() if isinstance(files, dict) else [files]:
            if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
                raise Unsafe(
                    f"the index names a file outside of its directory: {name!r}",
                    where=str(index),
                    next="use a model whose index names its own files only",
                )
    _check_whole(directory, weights=False)


def _check_whole(directory: Path, weights: bool) -> None:
    """Raises NoValidCheckpoint where the weights, or the other files, of a model that we have
    written are not what they were."""
    if not durable.is_signed(directory):
        return
    try:
        durable.verify(directory, lambda name: name.endswith(".safetensors") is weights)
    except durable.DamagedError as damage:
        raise NoValidCheckpoint(
            f"the model is damaged: {damage}",
            where=str(directory),
            kept="all files",
            next="use a checkpoint of its run, or restore the file; if you have changed it on "
            f"purpose, delete {durable.MANIFEST}",
        ) from damage


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model directory."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputNotFound(
            f"there is no {path.name}", where=str(path.parent), next="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not readable as JSON: {error}", where=str(path), next="check that the file is whole"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            "should hold a JSON object", where=str(path), next="check that the file is whole"
        )
    return value


def _model_in_run(path: Path) -> Path:
    if (path / "config.json").exists() or not (path / "run.json").exists():
        return path
    if (path / "final").is_dir():
        return path / "final"
    steps = sorted(
        d for d in (path / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", d.name)
    )
    if not steps:
        raise NoValidCheckpoint(
            "the run has no model yet", where=str(path), next="let it train on first"
        )
    _check_whole(steps[-1], weights=False)
    best = read_json(steps[-1] / "state.json")["state"]["best_step"]
    named = [d for d in steps if best is not None and int(d.name[5:]) == best]
    return (named or steps)[-1]


def _all_keys(value: Any) -> list[str]:
    """The keys of nested JSON, however deep."""
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


def load_model(
    auto: Any,
    name_or_path: str,
    revision: str | None = None,
    may_be_new: Callable[[str], bool] = lambda weight: False,
    **options: Any,
) -> PreTrainedModel:
    """A model of an Auto class of transformers in fp32; only what may be new can be missing.

    Raises DataError for any other weight that is missing, or does not fit.
    """
    place = locate(name_or_path)
    _check_whole(Path(place), weights=True)
    model, report = _from_pretrained(
        auto,
        place,
        revision,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    wrong = sorted(report["missing_keys"]) + [str(key[0]) for key in report["mismatched_keys"]]
    faults = [name for name in wrong if not may_be_new(name)]
    if faults:
        raise DataError(
            f"{len(faults)} weights of the model are missing or have another shape: "
            + ", ".join(faults[:3]),
            where=f"{name_or_path} (model.name_or_path)",
            next="use a directory whose config.json and weights belong together",
        )
    return model.train()


def _from_pretrained(auto: Any, name: str, revision: str | None, **options: Any) -> Any:
    local = Path(name).is_dir()
    try:
        return auto.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=local or not hub.answers(name, revision),
            **options,
        )
    except Exception as error:
        raise _translate(error, name, local) from error


def _translate(error: Exception, name: str, local: bool) -> Exception:
    """The fault of ours that a loading error of transformers or safetensors stands for."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    if "trust_remote_code" in text:
        return Unsafe(
            "the model brings code of its own",
            where=name,
            next="use a model that transformers knows by itself",
        )
    if not local and isinstance(error, OSError):
        return HubUnreachable(
            f"the hub did not give {name!r}: {reason}",
            where="model.name_or_path",
            next="check the name and the network, or give a local directory",
        )
    if isinstance(error, MemoryError):
        return error
    advice = "check that the directory is whole"
    if "does not recognize this architecture" in text:
        advice = "if it is one of your own, write model.code=FILE and add --allow-code"
    return DataError(f"the model cannot be read: {reason}", where=name, next=advice)
