"""The model card of a run: `README.md` of its finished model, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader

from llmkit.errors import DataError, Diverged
from llmkit.reporting.format import heading, markdown_text
from llmkit.reporting.run_record import RunRecord
from llmkit.storage import atomic, outputs
from llmkit.storage.strict_json import json_text

HUB_TASKS = {
    "causal": ("text-generation", "AutoModelForCausalLM"),
    "masked": ("fill-mask", "AutoModelForMaskedLM"),
    "completion": ("text-generation", "AutoModelForCausalLM"),
    "sequence_to_sequence": ("text2text-generation", "AutoModelForSeq2SeqLM"),
    "preference": ("text-generation", "AutoModelForCausalLM"),
    "span_corruption": ("text2text-generation", "AutoModelForSeq2SeqLM"),
    "merged": ("text-generation", "AutoModelForCausalLM"),
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "token_classification": ("token-classification", "AutoModelForTokenClassification"),
    "question_answering": ("question-answering", "AutoModelForQuestionAnswering"),
}
"""The hub's name of what each objective trains a model for, and the class that loads it; `merged`
is what `llmkit merge` makes."""

CARD_METRICS = (
    "loss", "perplexity", "bits_per_byte", "f1", "exact_match", "precision", "recall", "accuracy",
    "next_sentence_accuracy", "next_sentence_loss", "f1_macro", "margin", "chosen_gain",
    "mae", "pearson", "bleu", "chrf", "rougeL",
)  # fmt: skip
"""Figures that the metadata of the card holds."""


_FOLDERS = re.compile(r"(?<![\w/])(~|\.{0,2})/([^\s/]+/)*")  # of a path in a sentence
_MACHINE_PATH = re.compile(
    r"(?<![\w:/.<~])(?<!\]\()(?:~/[\w.@+-]+|(?:/[\w.@+-]+){2,}|[A-Za-z]:\\[\w.@+-]+)|file:/\S+"
)
_NON_FINITE = re.compile(r"\|\s*-?(nan|inf(inity)?)\s*\|", re.IGNORECASE)  # in a table


def write_card(run: RunRecord, directory: Path) -> None:
    """Writes the card of a run into the directory of its model; raises Diverged for a figure that
    is not finite, WriteError where the disk does not take it."""
    card = model_card(run)
    with suppress(atomic.DamagedError):
        if outputs.CARD in atomic.read_manifest(directory)["files"]:
            return  # an earlier version wrote it as part of the model
    atomic.replace_text(directory / outputs.CARD, card)


def model_card(run: RunRecord, repo: str | None = None) -> str:
    """The card of a run: metadata with its figures, data, protocol, limits, how to use the model
    and how to train it again. It names files without their folders, and the model by its name on
    the hub, if it has one.

    Raises Diverged for a figure that is not finite: the hub would show it as a result.
    """
    metadata = _metadata(run).to_yaml()
    body = _body(run, repo)
    return str(ModelCard(f"---\n{metadata}\n---\n\n{body}", ignore_metadata_errors=False))


def _objective(run: RunRecord) -> str:
    """What the model was trained for, or that it was merged."""
    return "merged" if run.command == "merge" else str(run.config.get("train", {}).get("objective"))


def _hub_task(run: RunRecord) -> tuple[str, str]:
    """The hub's name of what the model does, and the class that loads it."""
    return HUB_TASKS.get(_objective(run), HUB_TASKS["classification"])


def _metadata(run: RunRecord) -> ModelCardData:
    """What the hub sorts models by, with the figures."""
    task, base = _hub_task(run)[0], _base(run)
    is_table = task in ("text-classification", "token-classification", "question-answering")
    results = [
        EvalResult(
            task_type=task,
            dataset_type="csv" if is_table else "text",
            dataset_name=_data_name(run),
            dataset_split=split,
            metric_type=name,
            metric_name=heading(name),
            metric_value=value,
        )
        for split, name, value in _figures(run)
    ]
    return ModelCardData(
        base_model=base if _is_public(base) else None,
        eval_results=results or None,
        library_name="transformers",
        model_name=run.name,
        pipeline_tag=task,
        tags=["llmkit"],
    )


def _body(run: RunRecord, repo: str | None) -> str:
    """What people read, in Markdown."""
    (task, auto), base = _hub_task(run), _base(run)
    environment = Environment(
        loader=PackageLoader("llmkit.export"), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": markdown_text, "quoted": json_text}
    return environment.get_template("card.md").render(
        name=run.name,
        loaded=repo or run.name,
        task=task,
        auto=auto,
        loading=run.facts.get("loading"),
        base=base if _is_public(base) else (Path(base).name if base else None),
        architecture=(run.config.get("model") or {}).get("architecture"),
        run=run,
        objective=_objective(run),
        parameters=run.result.get("parameters"),
        data=_data_name(run),
        rows=list(_table(run)),
        limits=[_FOLDERS.sub("", each) for each in run.facts.get("limits", [])],
        command=_command(run),
        environment=run.facts.get("environment") or {},
        content=run.facts.get("content") or {},
    )


def _base(run: RunRecord) -> str | None:
    """The model that the run began with, if any."""
    name = (run.config.get("model") or {}).get("name_or_path")
    return None if name is None else str(name)


def check_card(text: str, where: str) -> None:
    """Refuses a card that holds a path of a machine, a figure that is not finite, or metadata that
    cannot be read.

    Raises DataError or Diverged, with the line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if found := _MACHINE_PATH.search(line):
            raise DataError(
                f"the model card holds a path of a machine: {found[0]}",
                where=f"{where}:{number}",
                next="change the line, then run the same command again",
            )
        if _NON_FINITE.search(line):
            raise _non_finite(line.strip(), f"{where}:{number}")
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:  # YAML's own, and what the classes of the hub raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"the metadata of the model card cannot be read: {reason}",
            where=where,
            next="correct the lines between the first two `---`, then run the same command again",
        ) from error
    try:
        json.dumps(data, allow_nan=False, default=str)
    except ValueError as error:
        raise _non_finite("its metadata", where) from error


def _non_finite(what: str, where: str) -> Diverged:
    return Diverged(
        f"the model card states a figure that is NaN or infinite: {what}",
        where=where,
        next="remove the figure, or train again with a lower train.learning_rate",
    )


def _figures(run: RunRecord) -> Iterator[tuple[str, str, float]]:
    for split, found in _splits(run):
        for name in CARD_METRICS:
            value = found.get(name)
            if not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise Diverged(
                    f"{split} {name} is {value}: a model card does not state it",
                    where=str(run.directory),
                    kept="the model, untouched",
                    next="train again with a lower train.learning_rate",
                )
            yield split, name, float(value)


def _splits(run: RunRecord) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if run.validation:
        yield "validation", run.validation
    if test := run.evaluation.get("test") or run.result.get("test"):
        yield "test", test


def _table(run: RunRecord) -> Iterator[dict[str, str]]:
    """The rows of the table of figures, each with its interval and its baselines."""
    for split, found in _splits(run):
        beside = run.baseline if split == "validation" else found.get("baseline", {})
        for name in CARD_METRICS:
            if not isinstance(found.get(name), int | float):
                continue
            bounds = (found.get("intervals") or {}).get(name)
            others = [
                f"{baseline} {each[name]:.4g}" for baseline, each in beside.items() if name in each
            ]
            yield {
                "split": split,
                "name": heading(name),
                "value": f"{found[name]:.4g}",
                "interval": f"{bounds[0]:.4g} to {bounds[1]:.4g}" if bounds else "",
                "baselines": ", ".join(others),
            }


def _data_name(run: RunRecord) -> str:
    """The names of the training files, without their folders."""
    data = run.config.get("data") or {}
    files = list(data.get("train_files") or [])
    for domain in (data.get("mixture") or {}).values():
        files += domain.get("files", []) if isinstance(domain, Mapping) else []
    names = list(dict.fromkeys(_without_folder(str(name)) for name in files))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_folder(name: str) -> str:
    return name if "://" in name else name.rstrip("/").rpartition("/")[2]


def _is_public(name: str | None) -> bool:
    """Whether a name can only be one of the hub."""
    return bool(name) and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))


def _command(run: RunRecord) -> str:
    """The command of the run with files by their names alone."""
    return shlex.join(map(_shortened, run.command_line))


def _shortened(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and "/" in value:
        return f"{key}={_without_folder(value)}"
    return _without_folder(argument) if "/" in argument and not equals else argument
