"""Read a GGUF file back, and compare everything in it with the model that it was written from."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Number
from gguf import GGUFReader, Keys, TokenType
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llmkit.errors import LlmkitError
from llmkit.export.gguf.architectures import Metadata
from llmkit.export.gguf.tensors import GgufTensor
from llmkit.progress import Advance

_FLOAT_STEP = {Number.F16: 2.0**-11, Number.BF16: 2.0**-8}
"""Largest relative rounding error of a number."""

_SMALLEST_F16 = 2.0**-25
"""Largest rounding error of an fp16 number near 0."""

_Q8_STEP = 0.5001 / 127 + 2.0**-11
"""Largest error of a q8_0 value, relative to the largest of its block: half a step, and the
rounding of the scale to fp16."""


def check_metadata(path: Path, expected: Metadata) -> int:
    """Compares the keys of the file, which include its tokenizer; returns their number.

    Raises LlmkitError for one that differs.
    """
    reader = GGUFReader(path)
    for key, value in expected.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        if found != (float(np.float32(value)) if isinstance(value, float) else value):
            raise differs(path, f"the key {key}")
    return len(expected)


def check_tensors(path: Path, tensors: Sequence[GgufTensor], advance: Advance) -> float:
    """Compares every tensor with the model; returns the largest difference, which comes from the
    number type.

    Raises LlmkitError for a tensor that is missing or unknown, has another shape, or differs by
    more than rounding.
    """
    found = {each.name: each for each in GGUFReader(path).tensors}
    if found.keys() != {each.name for each in tensors}:
        raise differs(path, "the names of the tensors")
    largest = 0.0
    for tensor in tensors:
        read = found[tensor.name]
        wanted = tensor.weight.detach().float().contiguous().numpy()
        values = gguf.quants.dequantize(read.data, read.tensor_type).reshape(-1)
        if tuple(reversed(read.shape.tolist())) != wanted.shape or len(values) != wanted.size:
            raise differs(path, f"the shape of {tensor.name}")
        difference = np.abs(values.reshape(wanted.shape) - wanted)
        if not (difference <= _rounding(wanted, read.tensor_type)).all():
            raise differs(path, f"the values of {tensor.name}")
        largest = max(largest, float(difference.max(initial=0)))
        advance(tensor.n_bytes)
    return largest


def _rounding(values: NDArray[Any], number: Number) -> NDArray[Any]:
    """The largest difference that a number type may make, for each value."""
    sizes = np.abs(values)
    if number == Number.Q8_0:
        blocks = sizes.reshape(-1, gguf.GGML_QUANT_SIZES[number][0])
        each: NDArray[Any] = (blocks.max(1, keepdims=True) * _Q8_STEP).repeat(blocks.shape[1], 1)
        return each.reshape(values.shape) + 127 * _SMALLEST_F16
    return np.asarray(sizes * _FLOAT_STEP.get(number, 0.0)) + (
        _SMALLEST_F16 if number == Number.F16 else 0.0
    )


def check_ids(path: Path, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> int:
    """Reads texts with the tokens and merges of the file, and compares their ids with the
    tokenizer's; returns the number of texts.

    The rule that splits text is the tokenizer's own: llama.cpp alone can show that its rule of that
    name is the same. Raises LlmkitError for other ids.
    """
    made = _tokenizer_of(path, tokenizer)
    for text in texts:
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=False)
        if made.encode(text, add_special_tokens=False).ids != expected["input_ids"]:
            raise differs(path, f"the tokens of {text[:40]!r}")
    return len(texts)


def _tokenizer_of(path: Path, tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    reader = GGUFReader(path)
    tokens, types, merges = (
        reader.get_field(key).contents()  # type: ignore[union-attr]  # they were compared
        for key in (Keys.Tokenizer.LIST, Keys.Tokenizer.TOKEN_TYPE, Keys.Tokenizer.MERGES)
    )
    kinds = list(zip(tokens, types, strict=True))
    vocabulary = {token: id for id, (token, kind) in enumerate(kinds) if kind != TokenType.UNUSED}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ignores = bool(model.get("ignore_merges"))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignores))
    made.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    made.add_special_tokens([AddedToken(t) for t, kind in kinds if kind == TokenType.CONTROL])
    made.add_tokens([AddedToken(t) for t, kind in kinds if kind == TokenType.USER_DEFINED])
    return made


def comparable_texts(texts: Sequence[str], normalizes: bool) -> list[str]:
    """The texts, in the normal form NFC if the tokenizer brings them into it."""
    return [unicodedata.normalize("NFC", text) for text in texts] if normalizes else list(texts)


def differs(path: Path, what: str) -> LlmkitError:
    """The error for a file that does not hold the model."""
    return LlmkitError(
        f"the file differs from the model in {what}",
        where=path.name,
        kept="nothing: the file was removed",
        next="report it with the architecture of the model and its tokenizer.json",
    )
