"""The experts to merge: found in branches and in earlier merges, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.errors import ConfigError
from llmkit.models import pretrained
from llmkit.models.experts import record as records
from llmkit.models.experts import twins
from llmkit.models.experts.record import Expert, ExpertsRecord
from llmkit.models.experts.twins import DenseState
from llmkit.models.pretrained import Pretrained

ENSEMBLE_DIRECTORY = "experts"
"""The directory of an ensemble that holds one model directory for each expert."""


@dataclass(frozen=True)
class Source:
    """One expert to merge, with its weights as a dense model."""

    expert: Expert
    record: ExpertsRecord
    """The record of the directory that it comes from."""
    state: DenseState
    embeddings: frozenset[str]
    """The names of the weights with one row for each token."""
    location: str

    @property
    def name(self) -> str:
        """Its domain."""
        return self.expert.name

    @property
    def config(self) -> PretrainedConfig:
        """Its config as a dense model."""
        settings = {k: v for k, v in self.record.dense.items() if k != "model_type"}
        made: PretrainedConfig = CONFIG_MAPPING[self.record.dense["model_type"]](**settings)
        return made


def record_of(model: Pretrained) -> ExpertsRecord:
    """The record of a model; raises ConfigError if it neither is an expert nor holds any."""
    found = records.read_record(Path(model.location))
    if found is None:
        raise ConfigError(
            f"{model.name} was not trained as the expert of a domain",
            where="merge.experts",
            next="train it with `llmkit pretrain CONFIG --model SEED --expert DOMAIN`",
        )
    return found


def open_branch(name: str, model: Pretrained) -> ExpertsRecord:
    """The record of a branch, whose expert gets this name; raises ConfigError for a merged
    model."""
    found = record_of(model)
    if found.kind != "branch":
        raise ConfigError(
            f"{model.name} holds {len(found.experts)} experts, not one",
            where=f"merge.experts.{name}",
            next=f"name it with `--model {model.name}` to add experts to it",
        )
    return found.renamed(name)


def load_sources(model: Pretrained, record: ExpertsRecord) -> list[Source]:
    """The experts of a model with their weights, in the order of their names."""
    if record.kind == "ensemble":
        parts = [open_part(model, expert.name) for expert in record.experts]
    else:
        parts = [model]
    loaded = [pretrained.load_model(part).eval() for part in parts]
    states = [(state, each) for each in loaded for state in twins.dense_states(each)]
    return [
        Source(expert, record, state, twins.embedding_names(each), model.location)
        for expert, (state, each) in zip(record.experts, states, strict=True)
    ]


def open_part(model: Pretrained, name: str) -> Pretrained:
    """The model of one expert of an ensemble."""
    return pretrained.open_model(str(Path(model.location) / ENSEMBLE_DIRECTORY / name))


def check_same_family(found: Sequence[tuple[str, ExpertsRecord]]) -> None:
    """Raises ConfigError for experts that do not come from one seed: with the name of the directory
    and the record of each."""
    (first_name, first), *others = found
    for name, other in others:
        different = _difference(first, other)
        if different:
            raise ConfigError(
                f"{first_name} and {name} cannot be merged: they have {different}",
                where="merge.experts",
                next="merge experts that began with the same model: give each "
                "`llmkit pretrain CONFIG --expert DOMAIN` the same --model",
            )


def _difference(first: ExpertsRecord, other: ExpertsRecord) -> str:
    if first.tokenizer != other.tokenizer:
        return "different tokenizers"
    shape = _shape(first.dense)
    for key, value in _shape(other.dense).items():
        if shape.get(key) != value:
            return f"different shapes ({key} is {shape.get(key)} and {value})"
    if first.seed != other.seed:
        return "different seeds"
    return "" if first.frozen == other.frozen else "different values of train.freeze"


def _shape(dense: Mapping[str, object]) -> dict[str, object]:
    skipped = {"architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    return {key: value for key, value in dense.items() if key not in skipped}


def with_hash(source: Source) -> Source:
    """The source with the hash of its weights in the record."""
    expert = replace(source.expert, weights=records.state_hash(source.state))
    return replace(source, expert=expert)
