"""What of several runs can be compared: which figures, whether in pairs, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from llmkit.errors import UsageError
from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.run_record import RunRecord

HEADLINES = (
    "bleu", "chrf", "bits_per_byte", "perplexity", "f1", "accuracy", "f1_macro", "mae", "pearson",
    "loss",
)  # fmt: skip
"""Figures that runs are compared by, where they have them."""

_JOBS = {
    "causal": "a causal language model",
    "masked": "a masked language model",
    "completion": "a model that responds",
    "span_corruption": "a pretrained encoder-decoder model",
    "sequence_to_sequence": "an encoder-decoder model",
    "preference": "a model tuned on preferences",
    "token_classification": "a tagger",
    "question_answering": "a model that answers questions",
    "single_label_classification": "a classifier",
    "multi_label_classification": "a classifier with several labels per row",
    "regression": "a regression",
}
_PER_TOKEN = {"loss", "perplexity", "accuracy"}
"""Figures of language models that depend on the tokenizer."""

_LANGUAGE_MODELS = ("causal", "masked", "completion", "sequence_to_sequence")


def check_comparable(runs: Sequence[RunRecord]) -> None:
    """Raises UsageError for runs that cannot be compared: of other tasks or labels, without a
    common figure, or measured on the held-out part of other data."""
    measured = [run for run in runs if run.validation]
    for first, second in pairwise(measured):
        if reason := _why_not(first, second):
            raise UsageError(
                f"{first.name} and {second.name} cannot be compared: {reason[0]}",
                where=f"{first.directory}, {second.directory}",
                next=reason[1],
            )


def common_figures(runs: Sequence[RunRecord]) -> list[str]:
    """The figures that the runs are compared by, the most important first; none where the overall
    figures are of different domains."""
    if len({_judged_by(run) for run in runs} - {None}) > 1:
        return []
    names = [name for name in HEADLINES if any(name in run.validation for run in runs)]
    per_token = _PER_TOKEN if _tokenizers_differ(runs) else set()
    return [name for name in names if name not in per_token]


def domains_differ(runs: Sequence[RunRecord]) -> bool:
    """Whether the overall figures of the runs are of different domains."""
    return len({_judged_by(run) for run in runs} - {None}) > 1


def why_unpaired(one: RunRecord, other: RunRecord) -> str | None:
    """Why the difference of two runs is not computed from pairs; None if it is."""
    contents = _content(one), _content(other)
    for run in (one, other):
        if run.held_out is None and all(contents) and contents[0] != contents[1]:
            return f"the held-out data of {one.name} and {other.name} differ"
        if run.held_out is None:
            kept = "is unfinished" if not run.is_finished else "was made by an earlier version"
            return f"{run.name} {kept} and has not kept what became of each held-out example"
    mine, theirs = one.held_out, other.held_out
    assert mine is not None
    assert theirs is not None
    if (mine.kind, mine.content) == (theirs.kind, theirs.content):
        return None
    names = f"{one.name} and {other.name}"
    if _seeds_split(one, other):
        return (
            f"the held-out data of {names} were drawn by different seeds; with the same "
            "data.validation_files they are compared in pairs"
        )
    if _tokenizers_differ([one, other]):
        return f"the tokenizers of {names} differ"
    return f"the held-out data of {names} differ"


def _why_not(first: RunRecord, second: RunRecord) -> tuple[str, str] | None:
    """Why two runs with figures cannot be compared, and what to do."""
    jobs = _job(first), _job(second)
    together = "report runs of one task together"
    if None not in jobs and jobs[0] != jobs[1]:
        kinds = [_JOBS.get(str(job), str(job)) for job in jobs]
        return f"one is {kinds[0]}, the other {kinds[1]}", together
    common = set(first.validation) & set(second.validation) & {*HEADLINES}
    if common <= {"loss"}:
        one, other = (_headline(run) for run in (first, second))
        return f"one is measured by {one}, the other by {other}", together
    labels = _labels(first), _labels(second)
    if labels[0] and labels[1] and set(labels[0]) != set(labels[1]):
        only = sorted(set(labels[0]) ^ set(labels[1]))
        few = ", ".join(map(repr, only[:3])) + (", ..." if len(only) > 3 else "")
        return f"they predict different labels, such as {few}", "report runs with the same labels"
    if jobs[0] in ("masked", "completion", "sequence_to_sequence") and not common_figures(
        [first, second]
    ):
        return (
            "their figures are means per token of different tokenizers",
            "evaluate both on the same task, or report runs with the same tokenizer",
        )
    if jobs[0] == "masked" and _mask_share(first) != _mask_share(second):
        shares = " and ".join(f"{_mask_share(run):.0%}" for run in (first, second))
        return (
            f"they were measured with {shares} of the tokens hidden",
            "compare them with `llmkit evaluate --model A --model B --text FILE`",
        )
    if _other_data(first, second):
        return (
            "they were measured on held-out parts of different data",
            "give both runs the same data.validation_files, or compare the models with "
            "`llmkit evaluate --model A --model B`",
        )
    return None


def _job(run: RunRecord) -> str | None:
    """What a run trains; None if its config does not say."""
    objective = (run.config.get("train") or {}).get("objective")
    if objective in (*_LANGUAGE_MODELS, "preference", "token_classification"):
        return str(objective)
    kind = (run.config.get("data") or {}).get("problem_type")
    return kind if kind in _JOBS else None


def _labels(run: RunRecord) -> Sequence[str]:
    if run.held_out is not None:
        return run.held_out.names
    return list((run.validation.get("per_class") or {}).keys())


def _headline(run: RunRecord) -> str:
    """The name of the first figure that a run is compared by."""
    name = next((key for key in HEADLINES if key in run.validation), "nothing")
    return METRIC_NAMES.get(name, name)


def _judged_by(run: RunRecord) -> tuple[str, ...] | None:
    """The domains that the overall figures of a run are of; None if that is not known."""
    return None if run.held_out is None else tuple(sorted(run.held_out.overall))


def _tokenizers_differ(runs: Sequence[RunRecord]) -> bool:
    """Whether language models are known to have different tokenizers."""
    if not any(_job(run) in _LANGUAGE_MODELS for run in runs):
        return False
    return len({run.facts.get("tokenizer") for run in runs} - {None}) > 1


def _mask_share(run: RunRecord) -> float:
    return float((run.config.get("train") or {}).get("mask_probability") or 0)


def _other_data(first: RunRecord, second: RunRecord) -> bool:
    """Whether the held-out data of two runs differ, and come from different files."""
    names = _held_out_files(first), _held_out_files(second)
    if names[0] == names[1] or _content(first) == _content(second):
        return False
    mine, theirs = first.held_out, second.held_out
    if mine is None or theirs is None:
        return True
    common = set(mine.domains.items()) & set(theirs.domains.items())
    return mine.content != theirs.content and not common


def _held_out_files(run: RunRecord) -> list[Any]:
    """The files that the held-out data come from."""
    data = run.config.get("data") or {}
    mixture = data.get("mixture") or {}
    parts = [each for each in mixture.values() if isinstance(each, Mapping)] or [data]
    return [
        each.get("validation_files") or each.get("files") or each.get("train_files")
        for each in parts
    ]


def _content(run: RunRecord) -> dict[str, str]:
    """The hashes of the held-out data as the run read them."""
    found = (run.facts.get("content") or {}).items()
    return {name: value for name, value in found if name.startswith("validation data")}


def _seeds_split(one: RunRecord, other: RunRecord) -> bool:
    """Whether the held-out data of two runs differ only because other seeds drew them."""
    data = [each.config.get("data", {}) for each in (one, other)]
    given = [each.get("validation_files") or each.get("validation_rows") for each in data]
    seeds = {run.config.get("seed", 0) for run in (one, other)}
    return not any(given) and len(seeds) > 1 and _held_out_files(one) == _held_out_files(other)
