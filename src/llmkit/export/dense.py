"""A model as safetensors with weights of another number type, for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from llmkit.config.schema import Config
from llmkit.errors import ConfigError, LlmkitError
from llmkit.export.comparing import compare_outputs, probe_ids
from llmkit.export.source import ExportSource
from llmkit.export.texts import probe_texts
from llmkit.models.classifier import longest_text
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs

_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def check_safetensors(source: ExportSource, config: Config) -> dict[str, Any]:
    """Checks that the model can be exported, and that it has room on the disk."""
    weights = sum(weight.numel() for weight in source.outline().parameters())
    size = weights * _TYPES[config.export.written_type].itemsize
    outputs.check_room(Path(str(config.export.output)), size)
    return {"bytes": size}


def export_safetensors(source: ExportSource, config: Config, console: Console) -> dict[str, Any]:
    """Writes a directory for transformers, which appears once it is verified.

    Raises ConfigError for values that do not fit the number type, WriteError where the disk does
    not take it, and LlmkitError for a directory that does not hold the model.
    """
    check_safetensors(source, config)
    with console.loading_model():
        model = source.load(console.watch, console.warn)
    dtype, verified = _TYPES[config.export.written_type], dict[str, Any]()
    rows = probe_ids(source.tokenizer, longest_text(model.config, source.tokenizer))

    def fill(directory: Path) -> None:
        rounded = source.outline().to(dtype)
        rounded.load_state_dict(_rounded(model, dtype), assign=True)
        rounded.tie_weights()
        rounded.generation_config = getattr(model, "generation_config", None)
        rounded.config.dtype = dtype
        with console.waiting("writing the weights…"):
            rounded.save_pretrained(directory)
        source.tokenizer.save_pretrained(directory)
        back = type(rounded).from_pretrained(directory, dtype="auto").eval()
        verified["weights"] = _check_tensors(back, rounded, directory.name)
        verified["texts"] = _check_tokenizer(directory, source)
        verified["outputs"] = compare_outputs(model, back.float(), rows)

    output = Path(str(config.export.output))
    atomic.commit(output, fill, {"export": "safetensors"})
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    return {"bytes": size, "verified": verified, "not_verified": []}


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in this number type; raises ConfigError for values that do not fit."""
    found = {}
    for name, weight in model.state_dict().items():
        found[name] = weight.to(dtype) if weight.is_floating_point() else weight
        if not torch.isfinite(found[name]).all():
            raise ConfigError(
                f"the weight {name} holds values beyond the range of {dtype}",
                where="export.type",
                kept="nothing was written",
                next="use `--type bf16` or `--type f32`",
            )
    return found


def _check_tensors(back: PreTrainedModel, wanted: PreTrainedModel, name: str) -> int:
    """Compares every weight that was read back; returns their number."""
    found, expected = back.state_dict(), wanted.state_dict()
    if found.keys() != expected.keys():
        raise _differs(name, "the names of its weights")
    for weight, values in expected.items():
        if not torch.equal(found[weight], values):
            raise _differs(name, f"the weight {weight}")
    return len(expected)


def _check_tokenizer(directory: Path, source: ExportSource) -> int:
    """Compares the ids of texts; returns their number."""
    back, texts = AutoTokenizer.from_pretrained(directory), probe_texts(source.tokenizer)
    for text in texts:
        if back(text)["input_ids"] != source.tokenizer(text)["input_ids"]:
            raise _differs(directory.name, f"the tokens of {text[:40]!r}")
    return len(texts)


def _differs(name: str, what: str) -> LlmkitError:
    return LlmkitError(
        f"the directory differs from the model in {what}",
        where=name,
        kept="nothing: the directory was removed",
        next="report it with the architecture of the model",
    )
