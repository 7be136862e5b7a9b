"""The tensors of a GGUF file: names, order of rows, and number types of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Number
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.export.gguf.architectures import LlamaArchitecture, frequency_factors

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
NUMBERS = {"f32": Number.F32, "f16": Number.F16, "bf16": Number.BF16, "q8_0": Number.Q8_0}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ALWAYS_F32 = ("position_embd.weight", "ffn_gate_inp.weight", "rope_freqs.weight")
"""Ends of names of matrices that llama.cpp reads as fp32."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    source: str
    """Its name in transformers."""
    weight: Tensor
    """Its values in llama.cpp's order of rows."""
    number: Number

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.number]
        return self.weight.numel() // block * size

    def encoded(self) -> NDArray[Any]:
        """Its values as the file holds them. Raises ConfigError for values that do not fit."""
        values = self.weight.detach().float().contiguous().numpy()
        limit = float(np.finfo(np.float16).max) * (127 if self.number == Number.Q8_0 else 1)
        if self.number in (Number.F16, Number.Q8_0) and np.abs(values).max(initial=0) > limit:
            raise ConfigError(
                f"the weight {self.source} holds values beyond the range of fp16",
                where="export.type",
                kept="nothing was written",
                next="use `--type bf16` or `--type f32`",
            )
        return gguf.quants.quantize(values, self.number)


def gguf_tensors(
    model: PreTrainedModel, architecture: LlamaArchitecture, type: GgufType
) -> list[GgufTensor]:
    """The tensors of a model for llama.cpp; those of a model without memory have only sizes.

    Raises ConfigError for a weight that llama.cpp does not have.
    """
    found = []
    layers = int(model.config.num_hidden_layers)
    names = gguf.get_tensor_name_map(_number_of(architecture.name), layers)
    for source, weight in _weights(model, architecture):
        name = names.get_name(_known_name(source, architecture), (".weight", ".bias"))
        if name is None:
            raise ConfigError(
                f"llama.cpp has no weight {source} in a {architecture.name} model",
                where=f"{model.config.model_type} (model.name_or_path)",
                next="use `--format onnx` or `--format safetensors`",
            )
        if ".experts." in source:
            name += ".weight"
        found.append(GgufTensor(name, source, weight, _number(name, weight, NUMBERS[type])))
    if (factors := frequency_factors(model.config)) is not None:
        found.append(GgufTensor("rope_freqs.weight", "rope_parameters", factors, Number.F32))
    return found


def _number_of(name: str) -> gguf.MODEL_ARCH:
    return next(each for each, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _known_name(source: str, architecture: LlamaArchitecture) -> str:
    for ours, known in architecture.renamed.items():
        source = source.replace(f".{ours}.", f".{known}.")
    return source


def _number(name: str, weight: Tensor, wanted: Number) -> Number:
    """The number type of a tensor: vectors stay in fp32, and rows that q8_0 cannot divide in
    fp16."""
    if weight.ndim < 2 or name.endswith(_ALWAYS_F32):
        return Number.F32
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    return wanted if weight.shape[-1] % block == 0 else Number.F16


def _weights(
    model: PreTrainedModel, architecture: LlamaArchitecture
) -> Iterator[tuple[str, Tensor]]:
    """The weights under their names in transformers, with the shapes of llama.cpp."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = first.weight is last.weight
    output = next(name for name, module in model.named_modules() if module is last)
    for name, weight in model.state_dict().items():
        if is_tied and architecture.ties and name == f"{output}.weight":
            continue
        if name.endswith("experts.gate_up_proj"):
            gate, up = weight.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj"), gate
            yield name.replace("gate_up_proj", "up_proj"), up
        elif name.endswith(architecture.transposed or "-"):
            yield name, weight.T
        else:
            yield name, _ordered(name, weight, model.config, architecture)


def _ordered(
    name: str, weight: Tensor, config: PretrainedConfig, architecture: LlamaArchitecture
) -> Tensor:
    """The rows of queries and keys in the order in which llama.cpp rotates them."""
    if not architecture.rotates_neighbours:
        return weight
    name = _known_name(name, architecture)
    heads = int(config.num_attention_heads)
    if ".self_attn.q_proj." in name:
        return neighbours(weight, heads)
    if ".self_attn.k_proj." in name:
        return neighbours(weight, int(config.num_key_value_heads or heads))
    return weight


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows in which the two channels of each rotation are neighbours; transformers has the first
    channels of all rotations, and then the second."""
    rows = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, rows // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
