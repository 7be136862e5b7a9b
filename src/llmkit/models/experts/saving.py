"""Write a merged model as its weights are made, a part at a time.

The files are those that transformers writes for the whole model.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import IO

from huggingface_hub import split_torch_state_dict_into_shards
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from llmkit.models.experts import twins
from llmkit.models.experts.merge import MergedModel
from llmkit.storage.tensor_files import bytes_of, header, in_usual_order, outlined, write_index

_FILES = "model{suffix}.safetensors"


def save_configs(model: PreTrainedModel, directory: Path) -> None:
    """Writes the config of a model in fp32, and how it generates, for plain transformers."""
    model.config.dtype = "float32"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def save_merged(model: MergedModel, directory: Path, max_shard_size: str = "50GB") -> None:
    """Writes config and weights for plain transformers, in files of at most this size."""
    directory.mkdir(parents=True, exist_ok=True)
    outline = model.outline
    save_configs(outline, directory)
    whole = revert_weight_conversion(outline, twins.untied(outline, outline.state_dict()))
    split = split_torch_state_dict_into_shards(
        whole, filename_pattern=_FILES, max_shard_size=max_shard_size
    )
    if split.is_sharded:
        facts = {"total_parameters": outline.num_parameters(), **split.metadata}
        write_index(directory, "model", split.filename_to_tensors, **facts)
    with ExitStack() as opened:
        places: dict[str, tuple[IO[bytes], int]] = {}
        for name, weights in split.filename_to_tensors.items():
            shard = opened.enter_context((directory / name).open("wb"))
            outlines = {key: outlined(whole[key]) for key in weights}
            beginning, begins = header(in_usual_order(outlines))
            shard.write(beginning)
            places.update({weight: (shard, place) for weight, place in begins.items()})
        for part in model.parts:
            for name, weight in revert_weight_conversion(outline, part).items():
                file, place = places.pop(name)
                file.seek(place)
                file.write(bytes_of(weight))
            del part, weight  # before the next part is made
    if places:
        raise ValueError(f"weights were not made: {', '.join(places)}")
