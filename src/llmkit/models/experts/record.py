"""What a model directory states about the domain experts in it: `experts.json`, and their
statistics in `experts.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.config.types import EXPERT_NAME
from llmkit.errors import DataError, Unsafe
from llmkit.models.directory import STATISTICS
from llmkit.models.experts.statistics import DomainStatistics
from llmkit.models.experts.twins import DenseState
from llmkit.models.pretrained import Pretrained

FILE = "experts.json"
_FORMAT = 1

Kind = Literal["branch", "moe", "average", "ensemble"]
Frozen = Literal["none", "embeddings", "trunk"]
Lost = Literal["nothing", "trunk", "everything"]


@dataclass(frozen=True)
class Expert:
    """One domain expert."""

    name: str
    """The domain."""
    weights: str
    """The sha256 of its weights as a dense model."""
    statistics: DomainStatistics | None = None
    """Sums over its domain; None where they do not matter any more."""


@dataclass(frozen=True)
class ExpertsRecord:
    """The experts of a model directory and where they come from."""

    kind: Kind
    experts: Sequence[Expert]
    """Ordered by name."""
    seed: str
    """The content hash of the model that all of them began with."""
    tokenizer: str
    """The sha256 of their tokenizer."""
    frozen: Frozen
    """What training left as it was in the seed."""
    dense: Mapping[str, Any]
    """The config of one expert as a dense model."""
    merge: Mapping[str, Any]
    """How they were merged; empty for a branch."""
    lost: Lost = "nothing"
    """What of the experts the model no longer holds: `trunk`, all but the feed-forward networks, if
    it was merged; `everything` if all weights were averaged, or trained after the merge."""

    @property
    def names(self) -> list[str]:
        """The domains."""
        return [expert.name for expert in self.experts]

    @property
    def dense_config(self) -> PretrainedConfig:
        """The config of one expert as a dense model."""
        settings = {key: value for key, value in self.dense.items() if key != "model_type"}
        made: PretrainedConfig = CONFIG_MAPPING[self.dense["model_type"]](**settings)
        return made

    def renamed(self, name: str) -> ExpertsRecord:
        """A branch under another name."""
        (expert,) = self.experts
        return replace(self, experts=[replace(expert, name=name)])


def state_hash(state: DenseState) -> str:
    """The sha256 of the names and fp32 bytes of a dense model's weights."""
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(name.encode())
        whole.update(state[name].float().contiguous().cpu().numpy().tobytes())
    return whole.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256 of what a tokenizer does to text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def write_experts(directory: Path, record: ExpertsRecord) -> None:
    """Writes the files of a record into a model directory that is not yet visible."""
    tensors = {
        f"{expert.name}.{key}": tensor
        for expert in record.experts
        if expert.statistics is not None
        for key, tensor in expert.statistics.tensors().items()
    }
    if tensors:
        save_file(tensors, directory / STATISTICS)
    content = {
        "format": _FORMAT,
        "kind": record.kind,
        "seed": record.seed,
        "tokenizer": record.tokenizer,
        "frozen": record.frozen,
        "lost": record.lost,
        "merge": dict(record.merge),
        "experts": [{"name": each.name, "weights": each.weights} for each in record.experts],
        "dense": dict(record.dense),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read_experts(directory: Path) -> ExpertsRecord | None:
    """The record of a model directory; None for a model that is not an expert and holds none.

    Raises DataError if it is damaged, or written by a newer llmkit, and Unsafe for the name of an
    expert that may lead to another directory.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > _FORMAT:
            raise DataError(
                "it was written by a newer llmkit", where=str(path), next="update llmkit"
            )
        tensors = load_file(directory / STATISTICS) if (directory / STATISTICS).exists() else {}
        experts = [_expert(each, tensors) for each in content["experts"]]
        return ExpertsRecord(
            content["kind"],
            experts,
            content["seed"],
            content["tokenizer"],
            content["frozen"],
            content["dense"],
            content["merge"],
            content["lost"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"the record of experts is damaged ({error})",
            where=str(path),
            next="restore the file, or train the expert again",
        ) from error


def merged_record(model: Pretrained) -> ExpertsRecord | None:
    """The record of a model that `merge` has written with several experts; None for others."""
    found = read_experts(Path(model.location))
    return found if found is not None and found.kind in ("moe", "ensemble") else None


def _expert(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Expert:
    name = str(content["name"])
    if not EXPERT_NAME.fullmatch(name):
        raise Unsafe(
            f"the record of experts has a name that may lead to another directory: {name!r}",
            where=FILE,
            next="use a model whose experts are named by letters, digits, - and _",
        )
    own = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in tensors.items()
        if key.rpartition(".")[0] == name
    }
    statistics = DomainStatistics.of_tensors(own) if own else None
    return Expert(name, str(content["weights"]), statistics)
