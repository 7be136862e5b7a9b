"""Load the weights of a pretrained model, and refuse incomplete ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmkit.errors import DataError
from llmkit.models import build, hub, rope
from llmkit.models.build import Purpose
from llmkit.models.location import check_whole
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say

_SHOWN = 6
"""Maximum number of modules that a message lists."""

_WEIGHTS = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}


def load_model(
    pretrained: Pretrained,
    purpose: Purpose | None = None,
    may_be_new: Callable[[str], bool] = lambda weight: False,
    say: Say = lambda text: None,
    **options: Any,
) -> PreTrainedModel:
    """Loads the model in fp32 for a purpose, by default its own.

    Weights for which `may_be_new` is true may be missing: they are initialised. Of tied weights the
    file may hold either. `say` reports new weights, and weights of the file that are not used.
    Raises DataError for any other weight that is missing or has another shape.
    """
    check_whole(Path(pretrained.location), weights=True)
    auto = (purpose or pretrained.purpose).auto
    model, report = _fetch(auto, pretrained, **options)
    _find_embedding(model, report, pretrained)
    new = sorted(report["missing_keys"]) + [str(key[0]) for key in report["mismatched_keys"]]
    faults = [name for name in new if not may_be_new(name)]
    if faults:
        raise DataError(
            f"{len(faults)} weights of the model are missing or have another shape: "
            + ", ".join(faults[:3]),
            where=f"{pretrained.name} (model.name_or_path)",
            next="use a directory whose weights match its config.json",
        )
    if new:
        say(f"new weights, initialised from the seed: {_module_names(new)}")
    if unused := sorted(set(report["unexpected_keys"]) - set(new)):
        say(f"weights of {pretrained.name} that are not used: {_module_names(unused)}")
    rope.use_document_lengths(model)
    return model.train()


@torch.no_grad()
def _find_embedding(model: PreTrainedModel, report: dict[str, Any], pretrained: Pretrained) -> None:
    """Loads the input embedding from the output layer of the file, if the two are tied, the file
    holds only the output layer, and the model has no output layer."""
    config, missing = model.config, set(report["missing_keys"])
    for purpose in (build.LANGUAGE_MODEL, build.MASKED_MODEL):
        mapping = purpose.mapping
        if type(config) not in mapping or not getattr(config, "tie_word_embeddings", True):
            continue
        tied = dict(mapping[type(config)]._tied_weights_keys or {}).items()
        found = {a: b for a, b in tied if a in report["unexpected_keys"] and b in missing}
        if found:
            whole, _ = _fetch(purpose.auto, pretrained)
            embedding = model.get_input_embeddings().weight
            embedding.copy_(whole.get_input_embeddings().weight)
            report["missing_keys"] = missing - set(found.values())
            report["unexpected_keys"] = set(report["unexpected_keys"]) - found.keys()
            return


def _module_names(weights: Iterable[str]) -> str:
    """Lists the modules that the weights belong to, without repeats."""
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in weights)
    return ", ".join(list(modules)[:_SHOWN]) + (" ..." if len(modules) > _SHOWN else "")


def _fetch(auto: Any, pretrained: Pretrained, **options: Any) -> Any:
    options = {"config": pretrained.config, **_WEIGHTS, **options}
    return hub.fetch(auto, pretrained.location, pretrained.revision, **options)
