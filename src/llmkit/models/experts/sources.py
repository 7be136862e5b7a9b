"""The experts to merge: found in branches and in earlier merges, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config.inference import MergeConfig
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError
from llmkit.models import pretrained
from llmkit.models.directory import EXPERTS_DIRECTORY
from llmkit.models.experts import record as records
from llmkit.models.experts import twins
from llmkit.models.experts.record import Expert, ExpertsRecord, Lost
from llmkit.models.experts.twins import DenseState
from llmkit.models.pretrained import Pretrained


@dataclass(frozen=True)
class ExpertSource:
    """One expert to merge. Its weights are read when they are needed."""

    expert: Expert
    record: ExpertsRecord
    """The record of the directory that it comes from."""
    location: str
    read: Callable[[], DenseState]
    """Returns its weights as a dense model. They are mapped from their file, and take memory only
    while they are used."""

    @property
    def name(self) -> str:
        """Its domain."""
        return self.expert.name

    @property
    def config(self) -> PretrainedConfig:
        """Its config as a dense model."""
        return self.record.dense_config

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of its weights; raises DataError for one that is NaN or infinite."""
        state = self.read()
        found = {name: state[name] for name in names}
        for name, weight in found.items():
            if not torch.isfinite(weight).all():
                raise DataError(
                    f"the expert of {self.name} cannot be merged: its weight {name} holds values "
                    "that are NaN or infinite",
                    where=self.location,
                    kept="no merged model was written",
                    next="train the expert again, with a lower train.learning_rate",
                )
        return found

    def model(self) -> PreTrainedModel:
        """The expert as a dense model."""
        return twins.model_of(self.config, self.read())


@dataclass(frozen=True)
class Family:
    """The models that experts are taken from, opened without weights; all began with one seed."""

    members: Sequence[tuple[Pretrained, ExpertsRecord]]
    names: Sequence[str]
    """The experts to merge, in the order of their names."""

    @property
    def record(self) -> ExpertsRecord:
        """What the members have in common."""
        return self.members[0][1]

    @property
    def model(self) -> Pretrained:
        """A member: all have its tokenizer."""
        return self.members[0][0]

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of the weights of each expert to merge, by name."""
        experts = [each for _, record in self.members for each in record.experts]
        found = {each.name: each.weights for each in experts}
        return {name: found[name] for name in self.names}

    @property
    def content(self) -> dict[str, str]:
        """The hash of the seed, and of the weights of each expert to merge, by description."""
        experts = {f"expert of {name}": weights for name, weights in self.hashes.items()}
        return {"seed": self.record.seed, **experts}

    def branches(self) -> dict[str, Pretrained]:
        """Each expert to merge as a dense model by itself, where there is one."""
        found = {}
        for model, record in self.members:
            parts = {name: f"{model.location}/{EXPERTS_DIRECTORY}/{name}" for name in record.names}
            if record.kind == "branch":
                found[record.names[0]] = model
            elif record.kind == "ensemble":
                found |= {name: pretrained.open_model(place) for name, place in parts.items()}
        return {name: found[name] for name in self.names if name in found}

    def sources(self) -> list[ExpertSource]:
        """The experts to merge, in the order of their names."""
        found = [
            ExpertSource(expert, record, model.location, read)
            for model, record in self.members
            for expert, read in zip(record.experts, _readers(model, record), strict=True)
            if expert.name in self.names
        ]
        return sorted(found, key=lambda source: source.name)


def open_family(config: Config) -> Family:
    """The experts that a config names: those of `model.name_or_path` and of `merge.experts`, but
    not `merge.without`.

    Raises ConfigError for models that hold no experts, or that cannot be merged.
    """
    settings = config.merge
    members: list[tuple[Pretrained, ExpertsRecord]] = []
    if (base := _base(config)) is not None:
        members.append((base, _record_of(base, "model.name_or_path")))
    for name, place in settings.experts.items():
        model = pretrained.open_model(place)
        members.append((model, _branch(name, model)))
    if not members:
        raise ConfigError(
            "no experts are given",
            where="merge.experts",
            next="pass each with `--expert DOMAIN=RUN`, or a merged model with `--model`",
        )
    _check_same(members)
    if len(members) > 1:
        _check_whole(members[0], settings)
    names = [name for _, record in members for name in record.names]
    return Family(members, _wanted(names, settings))


def _base(config: Config) -> Pretrained | None:
    """The merged model to add experts to, or to take them out of.

    A config file that `pretrain` reads too may name the model that the seed began with: it is not
    meant where experts are given.
    """
    is_given = ("model", "name_or_path") in config._own
    base = pretrained.of_config(config)
    if base is None or is_given or not config.merge.experts:
        return base
    return base if records.read_experts(Path(base.location)) is not None else None


def _wanted(names: Sequence[str], settings: MergeConfig) -> list[str]:
    """The names of the experts to merge, sorted; raises ConfigError for names that do not fit."""
    folded = [name.casefold() for name in names]  # some file systems do not keep case
    if repeated := {name for name in names if folded.count(name.casefold()) > 1}:
        raise ConfigError(
            f"there are two experts of {', '.join(sorted(repeated))}",
            where="merge.experts",
            next="take the old one out first with `--without`, or give the new one another name",
        )
    asked = [*settings.without, *([] if settings.only is None else [settings.only])]
    if unknown := [name for name in asked if name not in names]:
        raise ConfigError(
            f"there is no expert of {', '.join(unknown)}",
            where="merge.without, merge.only",
            next=f"the experts are {', '.join(sorted(names))}",
        )
    left = sorted(set(names) - set(settings.without))
    if settings.only is not None:
        return [settings.only]
    if len(left) < 2:
        raise ConfigError(
            f"only the expert of {', '.join(left) or 'no domain'} is left, and a merge needs two",
            where="merge.experts",
            next="name more experts with `--expert DOMAIN=RUN`, or use `--only` for a dense model",
        )
    return left


def _record_of(model: Pretrained, key: str) -> ExpertsRecord:
    found = records.read_experts(Path(model.location))
    if found is None:
        raise ConfigError(
            f"{model.name} was not trained as the expert of a domain, and holds no experts",
            where=key,
            next="train an expert with `llmkit pretrain CONFIG --model SEED --expert DOMAIN`",
        )
    if found.kind == "average":
        raise ConfigError(
            f"{model.name} is the average of {', '.join(found.names)}, which no longer holds them",
            where=key,
            next="name the runs of the experts; an average can be the seed of new ones",
        )
    return found


def _branch(name: str, model: Pretrained) -> ExpertsRecord:
    """The record of a branch, whose expert gets this name."""
    key = f"merge.experts.{name}"
    found = _record_of(model, key)
    if found.kind != "branch":
        raise ConfigError(
            f"{model.name} holds {len(found.experts)} experts, not one",
            where=key,
            next=f"name it with `--model {model.name}` to add experts to it",
        )
    return found.renamed(name)


def _check_whole(base: tuple[Pretrained, ExpertsRecord], settings: MergeConfig) -> None:
    """Raises ConfigError if experts are added to a merge that has lost what they are merged
    from."""
    model, record = base
    if record.lost == "nothing":
        return
    why = "was trained after the merge" if record.lost == "everything" else "has averaged weights"
    raise ConfigError(
        f"{model.name} {why}: the experts in it are no longer those that were merged",
        where="merge.experts",
        next="merge all the experts again, from their own runs"
        + ("" if settings.into == "moe" else f" (merge.into={settings.into})"),
    )


STAYS: Mapping[Lost, str] = {
    "trunk": "attention, embeddings and norms were averaged over all experts, and stay averaged",
    "everything": "the model was trained after the merge: all its weights have seen every domain",
}
"""What stays of an expert that is taken out of a merge, by what the merge has lost."""


def _check_same(members: Sequence[tuple[Pretrained, ExpertsRecord]]) -> None:
    """Raises ConfigError for experts that do not come from one seed."""
    (first_model, first), *others = members
    for model, other in others:
        if different := next(_differences(first, other), None):
            raise ConfigError(
                f"{first_model.name} and {model.name} cannot be merged: they have {different}",
                where="merge.experts",
                next="merge experts of one seed: each begins with the same --model",
            )


def _differences(first: ExpertsRecord, other: ExpertsRecord) -> Iterator[str]:
    if first.tokenizer != other.tokenizer:
        yield "different tokenizers"
    shape = _shape(first.dense)
    for key, value in _shape(other.dense).items():
        if shape.get(key) != value:
            yield f"different shapes ({key} is {shape.get(key)} and {value})"
    if first.seed != other.seed:
        yield "different seeds"
    if first.frozen != other.frozen:
        yield f"different train.freeze ({first.frozen} and {other.frozen})"


_NO_SHAPE = {"architectures", "transformers_version", "dtype", "use_cache"}


def _shape(dense: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in dense.items() if key not in _NO_SHAPE}


def _readers(model: Pretrained, record: ExpertsRecord) -> list[Callable[[], DenseState]]:
    """What reads the weights of each expert of a model."""
    if record.kind == "branch":
        return [partial(_dense, partial(pretrained.load_model, model), 0)]
    if record.kind == "ensemble":
        parts = [f"{model.location}/{EXPERTS_DIRECTORY}/{name}" for name in record.names]
        return [partial(_dense, partial(_load_part, part), 0) for part in parts]
    # The experts of a mixture are stacked in memory, which is done once for all of them.
    whole = cache(partial(pretrained.load_model, model))
    return [partial(_dense, whole, number) for number in range(len(record.names))]


def _dense(load: Callable[[], PreTrainedModel], number: int) -> DenseState:
    return twins.dense_states(load())[number]


def _load_part(place: str) -> PreTrainedModel:
    return pretrained.load_model(pretrained.open_model(place))
