"""Write a merged model as its weights are made, a part at a time.

The files are those that transformers writes for the whole model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from llmkit.models.experts import twins
from llmkit.models.experts.merge import MergedModel

_FILES = "model{suffix}.safetensors"
_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
"""How safetensors names what models in fp32 have: weights, and sometimes buffers."""


def save_merged(model: MergedModel, directory: Path, max_shard_size: str = "50GB") -> None:
    """Writes config and weights for plain transformers, in files of at most this size."""
    directory.mkdir(parents=True, exist_ok=True)
    outline = model.outline
    outline.config.dtype = "float32"
    outline.config.architectures = [type(outline).__name__]
    outline.config.save_pretrained(directory)
    outline.generation_config.save_pretrained(directory)
    whole = revert_weight_conversion(outline, twins.untied(outline, outline.state_dict()))
    split = split_torch_state_dict_into_shards(
        whole, filename_pattern=_FILES, max_shard_size=max_shard_size
    )
    if split.is_sharded:
        facts = {"total_parameters": outline.num_parameters(), **split.metadata}
        index = {"metadata": facts, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
    with ExitStack() as opened:
        places: dict[str, tuple[IO[bytes], int]] = {}
        for name, weights in split.filename_to_tensors.items():
            shard = opened.enter_context((directory / name).open("wb"))
            for weight, place in _write_header(shard, {key: whole[key] for key in weights}).items():
                places[weight] = shard, place
        for part in model.parts:
            for name, weight in revert_weight_conversion(outline, part).items():
                file, place = places.pop(name)
                file.seek(place)
                file.write(memoryview(weight.contiguous().numpy()))
            del part, weight  # before the next part is made
    if places:
        raise ValueError(f"weights were not made: {', '.join(places)}")


def _write_header(file: IO[bytes], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Writes the header of a safetensors file of these weights; returns where each begins.

    The format is described at https://github.com/huggingface/safetensors#format.
    """
    ordered = sorted(weights.items(), key=lambda named: (-named[1].element_size(), named[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, weight in ordered:
        begins[name], end = end, end + weight.numel() * weight.element_size()
        header[name] = {
            "dtype": _DTYPES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in begins.items()}
