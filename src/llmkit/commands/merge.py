"""`llmkit merge`: domain experts of one seed -> an ensemble, a mixture of experts or an average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.load import as_yaml
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text import fingerprints
from llmkit.data.text.clusters import Clusters, read_clusters
from llmkit.data.text.fingerprints import Fingerprints
from llmkit.distributed import device
from llmkit.distributed.processes import join_processes
from llmkit.errors import ConfigError, LlmkitError
from llmkit.evaluation import merges
from llmkit.evaluation.experts import unused_experts
from llmkit.evaluation.merges import DomainTexts
from llmkit.export import description
from llmkit.models import build, pretrained
from llmkit.models import directory as directories
from llmkit.models.directory import EXPERTS_DIRECTORY
from llmkit.models.experts import merge
from llmkit.models.experts import record as records
from llmkit.models.experts import sources as experts
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.merge import MergedModel
from llmkit.models.experts.record import ExpertsRecord, Kind
from llmkit.models.experts.saving import save_merged
from llmkit.models.experts.sources import ExpertSource, Family
from llmkit.models.pretrained import Pretrained
from llmkit.reporting import held_out
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs
from llmkit.training import final_model, resolve, run_directory, run_facts, run_identity
from llmkit.training.tasks import sizing

COMMAND = "merge"
WHOLE = "."
"""The place of a model that is not an expert of an ensemble."""


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Merges the experts into the model of a run directory, measures it on the held-out text of the
    config, and returns what it holds. What an earlier call has done is not repeated."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    texts = _texts(family, config, sources, console)
    content = {**family.content, **({} if texts is None else texts.content)}
    with run_directory.hold_run_directory(config, COMMAND) as directory:
        facts = run_directory.read_facts(directory) if _holds(directory, family, config) else {}
        if facts.get("content") == content and "result" in facts:
            console.say(f"already merged: {directory}")
            return dict(facts["result"])
        if facts:
            _write_facts(directory, {**facts, "content": content}, config, console)
        else:
            _merge(directory, family, content, config, console)
        result = {
            "command": COMMAND,
            "run_dir": str(directory),
            "model_dir": str(directory / outputs.FINAL),
            "into": _into(config),
            "experts": list(family.names),
            "parameters": run_directory.read_facts(directory)["parameters"],
        }
        before = len(console.warnings)
        if texts is not None:
            result |= _measured(directory, family, texts, console)
        limits = console.warnings[before:]
        run_directory.add_result(directory, result, console.warnings, limits)
        description.describe_run(result, console)
    return result


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks that the experts can be merged, without loading their weights."""
    run_directory.check_run_directory(config, COMMAND)
    family = _family(config, console)
    directory = run_directory.locate_run(config, COMMAND)
    _holds(directory, family, config)
    return {
        "command": COMMAND,
        "run_dir": str(directory),
        "into": _into(config),
        "experts": list(family.names),
    }


def _merge(
    directory: Path, family: Family, content: Mapping[str, str], config: Config, console: Console
) -> None:
    """Writes the facts of the merge, then its model."""
    found = family.sources()
    models = _merged(found, config)
    outlines = [each.outline for each in models.values()]
    outline = outlines[0]
    if WHOLE not in models:
        settings = ensemble_config(family.names, family.record.dense_config)
        outline = EnsembleForCausalLM(settings, outlines)
    facts = {
        **run_facts.surroundings(device.name_of(torch.device("cpu"))),
        "content": dict(content),
        "environment": resolve.environment(),
        "loading": final_model.loading_line(outline),
        "parameters": outline.num_parameters(),
    }
    _write_facts(directory, facts, config, console)
    parts = (_record(family, found, config), read_clusters(Path(family.model.location)))
    fill = partial(_fill, outline, models, family.model.tokenizer, *parts)
    atomic.clean(directory)
    with console.waiting("saving the merged model…"):
        atomic.commit(directory / outputs.FINAL, fill, {"step": 0, **_origin(family, config)})
    seen = [fingerprints.read_fingerprints(model.name) for model, _ in family.members]
    if known := [each for each in seen if each is not None]:
        fingerprints.write(directory, reduce(Fingerprints.joined, known))


def _write_facts(
    directory: Path, facts: Mapping[str, Any], config: Config, console: Console
) -> None:
    """Writes `run.json`, and `config.yaml`, which repeats the merge in another directory."""
    asked = {
        "command": COMMAND,
        "arguments": list(config.command_line),
        "request": run_identity.request_of(config, COMMAND),
    }
    said = {"notes": list(console.notes), "warnings": console.warnings}
    run_directory.write_record(directory, {**facts, **asked, **said})
    elsewhere = as_yaml(config.changed(output_dir=None))
    atomic.replace_text(directory / outputs.CONFIG, elsewhere)


def _origin(family: Family, config: Config) -> dict[str, Any]:
    """What decides the weights of a merge: it is the same wherever the experts are."""
    request = run_identity.request_of(config, COMMAND)
    settings = {
        key: value
        for key, value in request.items()
        if key == "seed" or (key.startswith("merge.") and not key.startswith("merge.experts."))
    }
    return {"experts": family.hashes, "settings": {**settings, "lost": family.record.lost}}


def _holds(directory: Path, family: Family, config: Config) -> bool:
    """Whether a run directory has the model of this merge.

    Raises ConfigError for one of other experts, or of another way to merge them.
    """
    try:
        manifest = atomic.verify(directory / outputs.FINAL)
        before = {key: manifest[key] for key in ("experts", "settings")}
    except (atomic.DamagedError, LookupError):
        return False
    now = _origin(family, config)
    changes = [
        f"{key} was {before['settings'].get(key)!r}, is now {now['settings'].get(key)!r}"
        for key in {**before["settings"], **now["settings"]}
        if before["settings"].get(key) != now["settings"].get(key)
    ]
    if before["experts"].keys() != now["experts"].keys():
        old, new = (", ".join(each["experts"]) for each in (before, now))
        changes.append(f"the experts were {old}, are now {new}")
    if changes:
        raise ConfigError(
            "the directory holds another merge:" + "".join(f"\n       {each}" for each in changes),
            where=str(directory),
            kept="that model, untouched",
            next="choose another --output-dir",
        )
    return bool(before["experts"] == now["experts"])


def _texts(
    family: Family, config: Config, sources: Sources, console: Console
) -> DomainTexts | None:
    """The held-out text of the domains, if the config has any; warns of what is not here."""
    positions = getattr(family.record.dense_config, "max_position_embeddings", None)
    block = sizing.block_of(config.data.block_size, positions or sizing.USUAL_BLOCK)
    found = merges.open_texts(config, sources, family.model, block, console.watch, console.say)
    if found is None:
        console.say("the merge is not measured: the config has no mixture with held-out text here")
    elif found.missing:
        console.warn(f"not measured, since its text is not here: {', '.join(found.missing)}")
    return found


def _seed_of(family: Family) -> Pretrained | None:
    """The model that the experts began with, where their runs name it, or beside these; None if it
    is not there, or has changed."""
    for run, name, revision in _named_seeds([model.name for model, _ in family.members]):
        for place in (name, str(run.parent / Path(name).name)):
            with suppress(LlmkitError):
                found = pretrained.open_model(place, revision)
                identity = directories.content_identity(found.location, revision)
                if identity == family.record.seed:
                    return found
    return None


def _named_seeds(models: Sequence[str]) -> Iterator[tuple[Path, str, str | None]]:
    """The runs of experts, each with the name and the revision of the model that it began with."""
    for name in models:
        place = Path(name).expanduser()
        run = place.parent if place.name == outputs.FINAL else place
        with suppress(LlmkitError):
            request = run_directory.read_facts(run).get("request", {})
            base = request.get("model.name_or_path")
            if request.get("command") != COMMAND and base is not None:
                yield run, base, request.get("model.revision")
            paths = [value for key, value in request.items() if key.startswith("merge.experts.")]
            yield from _named_seeds([*paths, *([base] if base and paths else [])])


def _seen(directory: Path, texts: DomainTexts) -> Iterator[tuple[str, str]]:
    """The domains whose held-out text was trained on, and how much of it."""
    known = fingerprints.read_fingerprints(str(directory))
    if known is None:
        return
    for name, tokens in texts.files.items():
        found = fingerprints.overlap(fingerprints.of_tokens([tokens]), known)
        if found.is_notable:
            yield name, found.sentence("document")


def _measured(
    directory: Path, family: Family, texts: DomainTexts, console: Console
) -> dict[str, Any]:
    """The figures of the merged model beside those of the seed and the experts; warns of losses."""
    merged = pretrained.open_model(str(directory / outputs.FINAL))
    seed = _seed_of(family)
    if seed is None:
        console.warn("the seed was not found where its experts were trained: no comparison with it")
    for name, sentence in _seen(directory, texts):
        console.warn(
            f"validation data of {name}: {sentence} are in the training data of the experts too: "
            "its figures are not held-out figures"
        )
    record, branches = records.merged_record(merged), family.branches()
    if record is None:  # a dense model: one expert, or an average
        branches = {} if len(family.names) == 1 else branches
    processes = join_processes("fp32")
    found = merges.measure_merge(merged, record, seed, branches, texts, processes, console.watch)
    held_out.write_held_out(directory, found.held_out)
    figures = found.described()
    for sentence in merges.worse_domains(figures["domains"]):
        console.warn(sentence)
    for sentence in unused_experts(directory.name, found.shares):
        console.warn(sentence)
    return figures


def _into(config: Config) -> str:
    return config.merge.into if config.merge.only is None else "dense"


def _family(config: Config, console: Console) -> Family:
    """The experts to merge; warns of what a merge cannot undo."""
    family, settings = experts.open_family(config), config.merge
    if (settings.without or settings.only) and (left := experts.STAYS.get(family.record.lost)):
        console.warn(f"what was learned from the other domains is not forgotten: {left}")
    if settings.only is None:
        merge.check_mergeable(family.record.dense_config, family.names, settings, family.model.name)
    return family


def check_ahead(seed: Config, config: Config) -> None:
    """Checks the settings of a merge whose experts are still to be trained, by the config of their
    seed or of a run that begins with it."""
    model = seed.model
    if model.code is not None:
        return  # its architecture is known when the file has run
    if (begun := pretrained.of_config(seed)) is not None:
        dense, name = begun.config, begun.name
    else:
        kind = "qwen3" if model.architecture == "auto" else model.architecture
        dense, name = build.model_config(kind, model.config, 1, 1, {"pad_token_id": 0}), "the seed"
    merge.check_mergeable(dense, sorted(config.merge.experts), config.merge, name)


def _merged(found: list[ExpertSource], config: Config) -> dict[str, MergedModel]:
    """The models to write, by their place in the directory."""
    settings = config.merge
    if settings.only is not None:
        return {WHOLE: merge.dense_expert(found[0])}
    match settings.into:
        case "moe":
            how = (settings.shared, settings.router, settings.top_k, config.seed)
            return {WHOLE: merge.mixture(found, *how)}
        case "average":
            return {WHOLE: merge.average(found)}
        case _:
            return {f"{EXPERTS_DIRECTORY}/{each.name}": merge.dense_expert(each) for each in found}


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
    outline: PreTrainedModel,
    models: Mapping[str, MergedModel],
    tokenizer: PreTrainedTokenizerFast,
    record: ExpertsRecord | None,
    found: Clusters | None,
    directory: Path,
) -> None:
    """Writes the files of the merged model; each expert of an ensemble is a model by itself."""
    outline.config.save_pretrained(directory)
    for place, model in models.items():
        save_merged(model, directory / place)
    for place in (WHOLE, *models):
        tokenizer.save_pretrained(directory / place)
    if record is not None:
        records.write_experts(directory, record)
    if found is not None:
        found.write(directory)
