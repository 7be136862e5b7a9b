"""Arrange the result of an evaluation to be read: metrics first, then details and the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llmkit.reporting.format import clock, heading, many

_Figures = Mapping[str, Any]

METRIC_NAMES = {
    "perplexity": "perplexity",
    "pseudo_perplexity": "pseudo-perplexity",
    "bits_per_byte": "bits per byte",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "margin": "margin",
    "chosen_gain": "gain of chosen responses",
    "rejected_gain": "gain of rejected responses",
    "chosen_log_probability": "log-probability of chosen responses",
    "rejected_log_probability": "log-probability of rejected responses",
    "next_sentence_accuracy": "next-sentence accuracy",
    "next_sentence_loss": "next-sentence loss",
    "mae": "mean absolute error",
    "pearson": "Pearson correlation",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "f1_micro": "micro F1",
    "f1_weighted": "weighted F1",
    "roc_auc": "ROC AUC",
    "matthews": "Matthews correlation",
    "token_f1": "token F1",
    "mse": "mean squared error",
    "nll": "negative log-likelihood",
    "loss": "loss",
    "rmse": "root mean squared error",
    "spearman": "Spearman correlation",
    "calibration_error": "calibration error",
}
"""The metrics in the order of their rows, with their names; others follow."""

_COUNTS = (
    "documents",
    "examples",
    "pairs",
    "sentence_pairs",
    "words",
    "tokens",
    "bytes",
    "characters",
)
_OTHERS = {*_COUNTS, "seconds"}
"""Numbers that are not metrics."""

_BASELINES = {
    "majority_of_these_rows": "most frequent label",
    "tfidf": "TF-IDF",
    "frequent_tag": "most frequent tags",
    "nearest_sentence": "nearest sentence",
    "no_answer": "never an answer",
}

_COMPARED = "comparisons"

NOT_TRAINED_ON = "not_trained_on"
"""The key of the figures of the rows or documents that the model was not trained on."""

MORE = "`--json` prints every figure, and `--output FILE` writes it."
"""The last line on a screen."""

LARGEST_MATRIX = 10
"""Classes up to which the confusion matrix is a table."""


class Arranged(NamedTuple):
    """What is printed of an evaluation: lines, tables by title, and closing lines."""

    lines: list[str]
    tables: dict[str, Any]
    closing: list[str]


def is_evaluation(figures: _Figures) -> bool:
    """Whether a result holds metrics of an evaluation, rather than a dry run or standard tasks."""
    return figures.get("command") == "evaluate" and any("protocol" in each for each in _of(figures))


def arrange_evaluation(figures: _Figures) -> Arranged:
    """Arranges the metrics of each model with intervals and baselines, then comparisons, details
    and the protocol."""
    models = _of(figures)
    tables: dict[str, Any] = {}
    for found in models:
        name = f" of {found['model']}" if len(models) > 1 else ""
        tables[f"metrics{name}"] = list(_metrics(found))
        tables |= {f"{title}{name}": rows for title, rows in _details(found)}
    if len(models) > 1:
        tables |= {key: rows for key, rows in _tables(figures) if key not in ("models", _COMPARED)}
    closing = [
        *map(_comparison, figures.get(_COMPARED, ())),
        *dict.fromkeys(map(_protocol, models)),
        MORE,
    ]
    return Arranged([_heading(found) for found in models], tables, closing)


def _of(figures: _Figures) -> Sequence[_Figures]:
    """The figures of each model."""
    models: Sequence[_Figures] = figures.get("models", [figures])
    return models


def _heading(found: _Figures) -> str:
    counts = [
        many(found[name], heading(name).removesuffix("s")) for name in _COUNTS if name in found
    ]
    name = found.get("model", "texts")
    skipped = found.get("left_out", {})
    left = [f"{skipped[key]:,} {key}" for key in ("blank", "undecodable") if skipped.get(key)]
    if skipped.get("lost"):
        left.append(f"{skipped['lost']:.2%} of letters and digits unknown to the tokenizer")
    time = f" in {clock(found['seconds'])}" if found.get("seconds", 0) >= 1 else ""
    return f"{name}: {', '.join(counts)}{time}" + (f"; skipped: {', '.join(left)}" if left else "")


def _metrics(found: _Figures) -> Iterator[dict[str, Any]]:
    """A row for each metric; columns that would be empty are missing."""
    names = [name for name, value in found.items() if _is_metric(name, value)]
    names.sort(key=lambda name: [*METRIC_NAMES, name].index(name))
    intervals = {**(found.get("interval") or {}), **(found.get("intervals") or {})}
    baselines = _baselines(found.get("baseline") or {})
    rest = found.get(NOT_TRAINED_ON)
    for name in names:
        row = {"": METRIC_NAMES.get(name, heading(name)), "value": found[name]}
        if intervals:
            bounds = intervals.get(name) or ()
            row["95% interval"] = " to ".join(f"{bound:.4g}" for bound in bounds)
        for baseline, values in baselines.items():
            row[baseline] = values.get(name)
        if rest:
            row[f"not trained on ({_count_of(rest)})"] = rest.get(name)
        yield from _rounded([row])


def confused_names(found: Mapping[str, Any]) -> list[str]:
    """The names of the rows and columns of the confusion matrix among the figures of a split: its
    classes, and for a tagger of entities also `O`, no entity."""
    return list(found.get("confused") or found.get("per_class") or ())


def confused_unit(found: Mapping[str, Any]) -> str:
    """What a confusion matrix counts: the rows of a classifier, the words of a tagger, or the
    entities that are actual or predicted."""
    return "entities" if "errors" in found else "words" if "words" in found else "rows"


def _count_of(rest: _Figures) -> str:
    units = {"documents": "document", "pairs": "pair", "examples": "row"}
    key = next(name for name in units if name in rest)
    return many(rest[key], units[key])


def _is_metric(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and name not in _OTHERS and not name.endswith("_per_second")


def _baselines(found: _Figures) -> dict[str, _Figures]:
    """The baselines by the names of their columns."""
    if "name" in found:
        return {"unigram model": found}
    if "mse" in found.get("majority_of_these_rows", ()):
        return {"always the mean": found["majority_of_these_rows"]}
    return {_BASELINES.get(key, heading(key)): value for key, value in found.items()}


def _details(found: _Figures) -> Iterator[tuple[str, Any]]:
    """The figures of each class, the confusion matrix with their names, and other tables."""
    classes = found.get("per_class", {})
    if classes:
        rows = [{"": name, **each} for name, each in classes.items()]
        yield "per class", _rounded(rows)
    matrix, names = found.get("confusion_matrix", ()), confused_names(found)
    if len(names) == len(matrix) <= LARGEST_MATRIX and names:
        rows = [
            {"": name, **dict(zip(names, counts, strict=True))}
            for name, counts in zip(names, matrix, strict=True)
        ]
        yield "confusion matrix: predictions by actual label", rows
    yield from _tables(found)


def _tables(found: _Figures) -> Iterator[tuple[str, Any]]:
    """The values that are rows of a table."""
    for key, value in found.items():
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            yield heading(key), _rounded(value)


def _rounded(rows: Sequence[_Figures]) -> list[dict[str, Any]]:
    """The rows with their keys in words and four digits of each float."""
    return [
        {
            heading(key): float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def _comparison(row: _Figures) -> str:
    key = next(name for name in row if name.endswith("_difference"))
    metric = METRIC_NAMES.get(key.removesuffix("_difference"), key.removesuffix("_difference"))
    difference = f"{metric} differs by {row[key]:.3g} ("
    if row["low"] is None:
        difference += "too little text for an interval)"
    else:
        difference += f"95% interval {row['low']:.3g} to {row['high']:.3g})"
    if row["better"] is None:
        return f"No clear difference between {row['model']} and {row['other']}: {difference}."
    worse = row["other"] if row["better"] == row["model"] else row["model"]
    return f"{row['better']} is better than {worse}: {difference}."


def _protocol(found: _Figures) -> str:
    """The protocol in one line; settings of a generation are in the JSON."""
    facts = {
        key: value for key, value in found["protocol"].items() if not isinstance(value, Mapping)
    }
    return "Protocol: " + "; ".join(f"{heading(key)} {value}" for key, value in facts.items())
