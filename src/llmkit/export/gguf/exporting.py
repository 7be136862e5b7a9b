"""From a model to a verified GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from llmkit import extras
from llmkit.config.schema import ExportConfig
from llmkit.export.gguf import llama_cpp, reading, writing
from llmkit.export.gguf.tensors import GgufTensor, GgufType
from llmkit.export.gguf.writing import GgufPlan
from llmkit.export.source import ExportSource
from llmkit.export.texts import probe_texts
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.storage import atomic, outputs


def check_gguf(source: ExportSource, settings: ExportConfig, console: Console) -> dict[str, Any]:
    """Checks that llama.cpp can read the model, and that the file has room on the disk.

    Raises ConfigError or DataError for a model that it cannot, and WriteError for a full disk.
    """
    plan, size = _planned(source, settings, console)
    return {"bytes": size, "pre_tokenizer": plan.vocabulary.pre}


def export_gguf(source: ExportSource, settings: ExportConfig, console: Console) -> dict[str, Any]:
    """Writes the model as one file, which appears once it is verified.

    Raises what `check_gguf` raises, WriteError where the disk does not take it, and LlmkitError if
    the file differs from the model.
    """
    plan, size = _planned(source, settings, console)
    with console.loading_model():
        model = source.load(console.watch, console.warn)
    tensors = plan.tensors(model)
    verified: dict[str, Any] = {}

    def fill(path: Path) -> None:
        with console.watch("writing", size) as advance:
            writing.write_gguf(path, plan.metadata, tensors, advance)
        verified.update(_verified(path, plan, source, model, tensors, console))

    output = Path(str(settings.output))
    atomic.commit_file(output, fill)
    return {
        "bytes": output.stat().st_size,
        "pre_tokenizer": plan.vocabulary.pre,
        "verified": verified,
        "not_verified": _not_verified(),
    }


def _planned(
    source: ExportSource, settings: ExportConfig, console: Console
) -> tuple[GgufPlan, int]:
    """The plan of the file, and the bytes of its tensors."""
    plan = writing.plan_gguf(source, cast(GgufType, settings.written_type))
    tensors = plan.tensors(source.outline())
    size = sum(tensor.n_bytes for tensor in tensors)
    outputs.check_room(Path(str(settings.output)), size)
    if plan.vocabulary.normalizes:
        console.warn(
            "the tokenizer brings text into the normal form NFC and llama.cpp does not: give it "
            "text in NFC, or letters with separate accents become other tokens"
        )
    if count := writing.stays_in_fp16(tensors, plan.type):
        console.say(
            f"{many(count, 'tensor')} of {len(tensors)} in f16: the length of their rows is not a "
            "multiple of 32, as q8_0 needs"
        )
    return plan, size


def _verified(
    path: Path,
    plan: GgufPlan,
    source: ExportSource,
    model: PreTrainedModel,
    tensors: Sequence[GgufTensor],
    console: Console,
) -> dict[str, Any]:
    """Compares the file with the model; returns the figures."""
    texts = probe_texts(source.tokenizer)
    keys = reading.check_metadata(path, plan.metadata)
    with console.watch("verifying", sum(tensor.n_bytes for tensor in tensors)) as advance:
        largest = reading.check_tensors(path, tensors, advance)
    own = reading.comparable_texts(texts, plan.vocabulary.normalizes)
    found: dict[str, Any] = {
        "keys": keys,
        "tensors": len(tensors),
        "largest_rounding": largest,
        "texts": reading.check_ids(path, source.tokenizer, own),
    }
    if llama_cpp.is_installed():
        with console.waiting("reading the file with llama.cpp…"):
            found["llama_cpp"] = llama_cpp.check_in_llama_cpp(
                path, plan, model, source.tokenizer, texts
            )
    return found


def _not_verified() -> list[str]:
    if llama_cpp.is_installed():
        return []
    command = extras.install_command(llama_cpp.EXTRA)
    return [
        "ids, logits and perplexity in llama.cpp: the package llama-cpp-python is not installed "
        f"(`{command}` builds it in some minutes)"
    ]
