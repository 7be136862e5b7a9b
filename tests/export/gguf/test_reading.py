"""A file that is not the model is found out, wherever it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from llmkit.errors import LlmkitError
from llmkit.export.gguf import reading, writing
from llmkit.export.source import ExportSource
from llmkit.export.texts import COUNT, probe_texts
from llmkit.models import pretrained

from .conftest import MakeModel, silent


def ignore(n_bytes: int) -> None:
    """Shows no progress."""


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_file_holds_what_it_was_written_from(
    kind: str, type: Any, make_model: MakeModel, tmp_path: Path
) -> None:
    source = ExportSource(pretrained.open_model(str(make_model(kind))))
    plan, file = writing.plan_gguf(source, type), tmp_path / "model.gguf"
    tensors = plan.tensors(source.load(silent, print))
    writing.write_gguf(file, plan.metadata, tensors, ignore)
    outline = plan.tensors(source.outline())
    assert [(t.name, t.n_bytes) for t in outline] == [(t.name, t.n_bytes) for t in tensors]
    assert reading.check_metadata(file, plan.metadata) == len(plan.metadata)
    largest = reading.check_tensors(file, tensors, ignore)
    assert (largest == 0) == (type == "f32")
    texts = reading.comparable_texts(probe_texts(source.tokenizer), plan.vocabulary.normalizes)
    assert reading.check_ids(file, source.tokenizer, texts) == COUNT


def test_every_difference_is_found(make_model: MakeModel, tmp_path: Path) -> None:
    source = ExportSource(pretrained.open_model(str(make_model("llama"))))
    plan, file = writing.plan_gguf(source, "q8_0"), tmp_path / "model.gguf"
    tensors = plan.tensors(source.load(silent, print))
    texts = probe_texts(source.tokenizer)

    def rewritten(written: list[Any] = tensors, **keys: Any) -> None:
        changed = {key.replace("_0_", "."): value for key, value in keys.items()}
        writing.write_gguf(file, plan.metadata | changed, written, ignore)

    rewritten(llama_0_rope_0_freq_base=10001.0)
    with pytest.raises(LlmkitError, match=r"the key llama.rope.freq_base"):
        reading.check_metadata(file, plan.metadata)
    rewritten(tensors[:-1])
    with pytest.raises(LlmkitError, match="the names of the tensors"):
        reading.check_tensors(file, tensors, ignore)
    merges = list(plan.vocabulary.merges)
    rewritten(tokenizer_0_ggml_0_merges=[*merges[10:], *merges[:10]])
    with pytest.raises(LlmkitError, match="the tokens of"):
        reading.check_ids(file, source.tokenizer, texts)


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_a_change_beyond_rounding_is_found_in_any_tensor(
    type: Any, make_model: MakeModel, tmp_path: Path
) -> None:
    source = ExportSource(pretrained.open_model(str(make_model("llama"))))
    plan, file = writing.plan_gguf(source, type), tmp_path / "model.gguf"
    tensors = plan.tensors(source.load(silent, print))
    writing.write_gguf(file, plan.metadata, tensors, ignore)
    content = file.read_bytes()
    for read in GGUFReader(file).tensors:
        place = read.data_offset + int(np.prod(read.data.shape)) // 2 * read.data.itemsize
        place += read.data.itemsize - 1 if read.data.dtype != np.uint8 else 0
        damaged = bytearray(content)
        damaged[place] ^= 0x60
        file.write_bytes(damaged)
        with pytest.raises(LlmkitError, match=f"the values of {read.name}"):
            reading.check_tensors(file, tensors, ignore)
