"""`llmkit merge`: domain experts of one seed -> an ensemble, a mixture of experts or an average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.load import as_yaml
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text.clusters import Clusters, read_clusters
from llmkit.distributed import device
from llmkit.errors import ConfigError
from llmkit.models import rope
from llmkit.models.directory import EXPERTS_DIRECTORY
from llmkit.models.experts import merge, twins
from llmkit.models.experts import record as records
from llmkit.models.experts import sources as experts
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.record import ExpertsRecord, Kind
from llmkit.models.experts.sources import EXPERT_OF, ExpertSource, Family
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs
from llmkit.training import final_model, resolve, run_directory, run_facts, run_identity

COMMAND = "merge"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Merges the experts into the model of a run directory, and returns what it holds."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    with run_directory.hold_run_directory(config, COMMAND) as directory:
        if (result := _finished(directory, family, config)) is not None:
            console.say(f"already merged: {result['model_dir']} is the model of these experts")
            return result
        found = family.load(console.watch)
        model = _merged(found, config)
        _write_facts(directory, model, family, config, console)
        parts = (_record(family, found, config), read_clusters(Path(family.model.location)))
        fill = partial(_fill, model, family.model.tokenizer, *parts)
        atomic.clean(directory)
        atomic.commit(directory / outputs.FINAL, fill, {"step": 0})
        result = {
            "command": COMMAND,
            "run_dir": str(directory),
            "model_dir": str(directory / outputs.FINAL),
            "into": _into(config),
            "experts": list(family.names),
            "parameters": model.num_parameters(),
        }
        run_directory.add_result(directory, result, console.warnings, [])
    return result


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks that the experts can be merged, without loading their weights."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    directory = run_directory.locate_run(config, COMMAND)
    _finished(directory, family, config)
    return {
        "command": COMMAND,
        "run_dir": str(directory),
        "into": _into(config),
        "experts": list(family.names),
    }


def _finished(directory: Path, family: Family, config: Config) -> dict[str, Any] | None:
    """The result of an earlier call that has merged these experts in the same way; None if there is
    none, or if its model is damaged.

    Raises ConfigError for the model of other experts, or of another way to merge them.
    """
    if not (directory / outputs.FINAL).exists():
        return None
    facts = run_directory.read_facts(directory)
    before = _way(facts.get("content", {}), facts.get("request", {}))
    now = _way(family.content, run_identity.request_of(config, COMMAND))
    if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        shown = {key: [each.get(key, "the default") for each in (before, now)] for key in changed}
        raise ConfigError(
            "the directory holds another merge:"
            + "".join(f"\n       {key} was {a}, is now {b}" for key, (a, b) in shown.items()),
            where=str(directory),
            kept="that model, untouched",
            next="choose another --output-dir",
        )
    if facts.get("content") != family.content or not final_model.is_written(directory, 0):
        return None
    return facts.get("result")


def _way(content: Mapping[str, str], request: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a merge, besides the weights of its experts: their paths do not."""
    keys = ("seed", "model.", "merge.")
    found = {
        key: value
        for key, value in request.items()
        if key.startswith(keys) and not key.startswith("merge.experts.")
    }
    names = [name.removeprefix(EXPERT_OF) for name in content if name.startswith(EXPERT_OF)]
    return {"the list of experts": ", ".join(names), **found}


def _into(config: Config) -> str:
    return config.merge.into if config.merge.only is None else "dense"


def _family(config: Config, console: Console) -> Family:
    """The experts to merge; warns of what a merge cannot undo."""
    family, settings = experts.open_family(config), config.merge
    if (settings.without or settings.only) and (left := experts.STAYS.get(family.record.lost)):
        console.warn(f"what was learned from the other domains is not forgotten: {left}")
    if settings.only is not None:
        return family
    if settings.into == "ensemble" and rope.has_longrope(family.record.dense_config):
        raise ConfigError(
            "an ensemble cannot read models whose positions depend on the length of a text",
            where=f"{family.model.name} (merge.into)",
            next="use merge.into=average, or a seed with fixed rotary frequencies",
        )
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
            names, dense = [each.name for each in found], found[0].config
            models = [twins.dense_model(dense, each.state) for each in found]
            return EnsembleForCausalLM(ensemble_config(names, dense), models)


def _record(family: Family, found: list[ExpertSource], config: Config) -> ExpertsRecord | None:
    """The record of the merged model; None if it no longer holds the experts."""
    settings = config.merge
    how = {"shared": settings.shared, "router": settings.router, "top_k": settings.top_k}
    kind: Kind = settings.into
    lost = family.record.lost
    if settings.only is not None:
        if lost != "nothing":
            return None
        kind = "branch"
    elif kind == "average":
        lost = "everything"
    elif kind == "moe" and lost == "nothing" and family.record.frozen != "trunk":
        lost = "trunk"
    return replace(
        family.record,
        kind=kind,
        experts=[each.expert for each in found],
        merge=how if kind == "moe" else {},
        lost=lost,
    )


def _fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    record: ExpertsRecord | None,
    found: Clusters | None,
    directory: Path,
) -> None:
    """Writes the files of the merged model; each expert of an ensemble is a model by itself."""
    final_model.save_model(model, tokenizer, directory)
    for part in (directory / EXPERTS_DIRECTORY).glob("*"):
        tokenizer.save_pretrained(part)
    if record is not None:
        records.write_experts(directory, record)
    if found is not None:
        found.write(directory)


def _write_facts(
    directory: Path, model: PreTrainedModel, family: Family, config: Config, console: Console
) -> None:
    """Writes `run.json`, and `config.yaml`, which repeats the merge in another directory."""
    facts = {
        "command": COMMAND,
        "arguments": list(config.command_line),
        "request": run_identity.request_of(config, COMMAND),
        **run_facts.surroundings(device.name_of(torch.device("cpu"))),
        "content": family.content,
        "notes": list(console.notes),
        "warnings": console.warnings,
        "environment": resolve.environment(),
        "loading": final_model.loading_line(model),
    }
    run_directory.write_record(directory, facts)
    atomic.replace_text(directory / outputs.CONFIG, as_yaml(config.changed(output_dir=None)))
