"""Write a model as a GGUF file: its metadata, its tokenizer and its tensors, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Number
from gguf import GGUFWriter, Keys
from numpy.typing import NDArray
from transformers import PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.export.gguf.architectures import (
    LlamaArchitecture,
    Metadata,
    architecture_of,
    hyperparameters,
)
from llmkit.export.gguf.tensors import FILE_TYPES, GgufTensor, GgufType, gguf_tensors
from llmkit.export.gguf.vocabulary import GgufVocabulary, vocabulary_of
from llmkit.export.source import ExportSource
from llmkit.progress import Advance


@dataclass(frozen=True)
class GgufPlan:
    """What a GGUF file will hold besides the weights."""

    architecture: LlamaArchitecture
    vocabulary: GgufVocabulary
    metadata: Metadata
    type: GgufType

    def tensors(self, model: PreTrainedModel) -> list[GgufTensor]:
        """The tensors of a model, or the outline of one, in the order of the file."""
        return gguf_tensors(model, self.architecture, self.type)


def plan_gguf(source: ExportSource, type: GgufType) -> GgufPlan:
    """Checks that llama.cpp can compute the model and read its tokenizer; loads no weights.

    Raises ConfigError for a model or a tokenizer that it cannot.
    """
    if source.opened.kind != "causal":
        raise ConfigError(
            f"llama.cpp generates text, and this is a {(source.config.architectures or ['?'])[0]}",
            where=f"{source.opened.name} (model.name_or_path)",
            next="use `--format onnx`, which takes classifiers, taggers and masked models",
        )
    source.opened.check_causal()
    config, name = source.config, source.opened.name
    architecture = architecture_of(config, name)
    vocabulary = vocabulary_of(source.tokenizer, int(config.vocab_size), _end_ids(source), name)
    metadata = {
        Keys.General.ARCHITECTURE: architecture.name,
        Keys.General.TYPE: gguf.GGUFType.MODEL,
        Keys.General.NAME: source.name,
        Keys.General.FILE_TYPE: int(FILE_TYPES[type]),
        Keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        **hyperparameters(config, architecture),
        **vocabulary.metadata(),
    }
    return GgufPlan(architecture, vocabulary, metadata, type)


def _end_ids(source: ExportSource) -> list[int]:
    """The ids that end a text of the model, according to its generation config."""
    from transformers import GenerationConfig

    directory = Path(source.opened.location)
    found = source.config.eos_token_id
    if (directory / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(directory).eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def write_gguf(
    path: Path, metadata: Metadata, tensors: Sequence[GgufTensor], advance: Advance
) -> None:
    """Writes the file; calls `advance` with the bytes of each tensor. Raises OSError."""
    writer = GGUFWriter(path, metadata[Keys.General.ARCHITECTURE])
    for key, value in metadata.items():
        if key != Keys.General.ARCHITECTURE:
            _add(writer, key, value)
    elements = np.dtype(np.float32)  # a shape is given in elements; n_bytes is what they take
    for tensor in tensors:
        shape = tensor.weight.shape
        writer.add_tensor_info(tensor.name, shape, elements, tensor.n_bytes, tensor.number)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            _append(writer, tensor.encoded())
            advance(tensor.n_bytes)
    finally:
        writer.close()


def _append(writer: GGUFWriter, values: NDArray[Any]) -> None:
    """Appends the values of the next tensor; the writer's own way, through NumPy, hides the reason
    of an OSError."""
    assert writer.fout is not None
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    file.write(np.ascontiguousarray(values).data)
    writer.write_padding(file, values.nbytes)


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(f"{key}: {value!r}")


def stays_in_fp16(tensors: Sequence[GgufTensor], type: GgufType) -> int:
    """The number of matrices whose rows q8_0 cannot divide."""
    return sum(each.number == Number.F16 for each in tensors) if type == "q8_0" else 0
