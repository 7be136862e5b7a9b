"""`llmkit merge`: domain experts of one seed -> an ensemble, a mixture of experts or an average."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.load import as_yaml
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.distributed import device
from llmkit.errors import ConfigError
from llmkit.models import rope
from llmkit.models.experts import merge, twins
from llmkit.models.experts import record as records
from llmkit.models.experts import sources as experts
from llmkit.models.experts.ensemble import DIRECTORY, EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.record import ExpertsRecord, Kind
from llmkit.models.experts.sources import ExpertSource, Family
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs
from llmkit.training import final_model, resolve, run_directory, run_facts

COMMAND = "merge"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Merges the experts into the model of a run directory, and returns what it holds."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    with run_directory.hold_run_directory(config, COMMAND) as directory:
        found = family.load(console.watch)
        model = _merged(found, config)
        record = _record(family, found, config)
        fill = partial(_fill, model, family.model.tokenizer, record)
        atomic.clean(directory)
        atomic.commit(directory / outputs.FINAL, fill, {"step": 0})
        result = {
            "command": COMMAND,
            "run_dir": str(directory),
            "model_dir": str(directory / outputs.FINAL),
            "into": config.merge.into if config.merge.only is None else "dense",
            "experts": list(family.names),
            "parameters": model.num_parameters(),
        }
        _write_down(directory, result, model, family, config, console)
    return result


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks that the experts can be merged, without loading their weights."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    return {
        "command": COMMAND,
        "run_dir": str(run_directory.locate_run(config, COMMAND)),
        "into": config.merge.into if config.merge.only is None else "dense",
        "experts": list(family.names),
    }


def _family(config: Config, console: Console) -> Family:
    """The experts to merge; warns of what a merge cannot undo."""
    family, settings = experts.open_family(config), config.merge
    if (settings.without or settings.only) and (left := experts.exactness(family.record)):
        console.warn(f"what was learned from the other domains is not forgotten: {left}")
    if settings.only is not None:
        return family
    if settings.into == "moe":
        twins.twin_of(family.record.dense_config, family.model.name)
        _check_mixture(family, config)
    return family


def _check_mixture(family: Family, config: Config) -> None:
    settings = config.merge
    if settings.top_k > len(family.names):
        raise ConfigError(
            f"a token cannot be routed to {settings.top_k} of {len(family.names)} experts",
            where="merge.top_k",
            next=f"write at most {len(family.names)}",
        )
    ways = (merge.FREQUENCY, merge.AVERAGE, *family.names)
    if settings.shared not in ways:
        raise ConfigError(
            f"there is no expert of {settings.shared}",
            where="merge.shared",
            next=f"write one of {', '.join(ways)}",
        )


def _merged(found: list[ExpertSource], config: Config) -> PreTrainedModel:
    settings = config.merge
    if settings.only is not None:
        return twins.dense_model(found[0].config, found[0].state)
    match settings.into:
        case "moe":
            return merge.mixture(
                found, settings.shared, settings.router, settings.top_k, config.seed
            )
        case "average":
            return merge.average(found)
        case _:
            models = [twins.dense_model(each.config, each.state) for each in found]
            if rope.longrope_limit(models[0]) is not None:
                raise ConfigError(
                    "an ensemble cannot read models whose positions depend on the length of a text",
                    where="merge.into",
                    next="use merge.into=average, or a seed with fixed rotary frequencies",
                )
            return EnsembleForCausalLM(
                ensemble_config([s.name for s in found], found[0].config), models
            )


def _record(family: Family, found: list[ExpertSource], config: Config) -> ExpertsRecord | None:
    """The record of the merged model; None if it no longer holds the experts."""
    settings = config.merge
    how = {"shared": settings.shared, "router": settings.router, "top_k": settings.top_k}
    kind: Kind = settings.into
    if settings.only is not None:
        if experts.exactness(family.record) is not None:
            return None
        kind = "branch"
    record = replace(family.record, kind=kind, experts=[each.expert for each in found], merge={})
    return replace(record, merge=how) if kind == "moe" else record


def _fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    record: ExpertsRecord | None,
    directory: Path,
) -> None:
    """Writes the files of the merged model; each expert of an ensemble is a model by itself."""
    final_model.save_model(model, tokenizer, directory)
    for part in (directory / DIRECTORY).glob("*"):
        tokenizer.save_pretrained(part)
    if record is not None:
        records.write_experts(directory, record)


def _write_down(
    directory: Path,
    result: dict[str, Any],
    model: PreTrainedModel,
    family: Family,
    config: Config,
    console: Console,
) -> None:
    facts = {
        "command": COMMAND,
        "arguments": sys.argv[1:],
        **run_facts.surroundings(device.name_of(torch.device("cpu"))),
        "content": {f"expert of {each.name}": each.weights for each in family.record.experts},
        "notes": list(console.notes),
        "environment": resolve.environment(),
        "loading": final_model.loading_line(model),
    }
    run_directory.write_record(directory, facts)
    atomic.replace_text(directory / outputs.CONFIG, as_yaml(config.changed(output_dir=None)))
    run_directory.add_result(directory, result, console.warnings, [])
