"""How good the model of a run is: figures with intervals beside baselines, in words, as a table and
as bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.reporting import plots
from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.format import bounds_of, bounds_text, figure_text, heading, many
from llmkit.reporting.page.comparability import HEADLINES
from llmkit.reporting.plots import PlottedFigure
from llmkit.reporting.run_record import LOWER_IS_BETTER, RunRecord

Figures = Mapping[str, Any]

MEANINGS = {
    "loss": "mean negative log-likelihood in nats; lower is better",
    "perplexity": "how many equally likely tokens the model chooses among, on average; lower is "
    "better",
    "bits_per_byte": "bits to encode a byte of the text, comparable between tokenizers; lower is "
    "better",
    "pseudo_perplexity": "perplexity of hidden tokens; compare it with masked models only",
    "f1": "harmonic mean of precision and recall of entities, or of words of answers; higher is "
    "better",
    "precision": "share of the entities found that are right; higher is better",
    "recall": "share of the entities that are found; higher is better",
    "accuracy": "share of predictions that are right; higher is better",
    "next_sentence_accuracy": "share of pairs of segments for which the model tells whether the "
    "second continues the first: 0.5 is chance",
    "next_sentence_loss": "mean negative log-likelihood of that in nats: 0.693 is chance",
    "f1_macro": "mean F1 of the classes, each counting the same; higher is better",
    "f1_micro": "F1 over all decisions; higher is better",
    "f1_weighted": "mean F1 of the classes, by their number of rows; higher is better",
    "matthews": "correlation of predicted and actual class: 0 is chance, 1 is perfect",
    "roc_auc": "chance that a positive row scores above a negative one: 0.5 is chance",
    "calibration_error": "mean gap between probability and share of right predictions; lower is "
    "better",
    "margin": "how much likelier the chosen response has become than the rejected one, in nats; "
    "higher is better",
    "chosen_gain": "how much likelier the chosen response has become than under the reference "
    "model, in nats; below 0 it has become less likely",
    "rejected_gain": "the same for the rejected response",
    "chosen_log_probability": "mean log-probability of the chosen response, in nats",
    "rejected_log_probability": "mean log-probability of the rejected response, in nats",
    "mae": "mean absolute error in the unit of the labels; lower is better",
    "mse": "mean squared error; lower is better",
    "rmse": "root mean squared error in the unit of the labels; lower is better",
    "pearson": "linear correlation with the labels; 1 is perfect",
    "spearman": "correlation of the ranks; 1 is perfect",
    "exact_match": "share of texts that equal the reference",
    "chrf": "overlap with the reference in runs of characters, 0 to 100",
    "bleu": "overlap with the reference in runs of words, 0 to 100",
    "rougeL": "longest common sequence of words with the reference, 0 to 1",
}

BASELINES = {
    "nearest_target": "target of the nearest source",
    "copied_source": "copied source",
    "reference": "reference model",
    "unigram": "unigram model",
    "chance": "chance",
    "tfidf": "TF-IDF",
    "frequent_tag": "most frequent tags",
    "nearest_sentence": "nearest sentence",
    "no_answer": "never an answer",
    "majority": "most frequent label",
    "majority_of_these_rows": "most frequent label",
}
"""Names of baselines, the strongest first."""

_COUNTS = {
    "pairs": "pair",
    "examples": "row",
    "conversations": "conversation",
    "words": "word",
    "tokens": "token",
}
_NOT_FIGURES = {*_COUNTS, "seconds", "threshold", "router_aux_loss"}

_SHARES = ("accuracy", "f1", "f1_macro")


def measured_splits(run: RunRecord) -> Iterator[tuple[str, Figures, Mapping[str, Figures]]]:
    """The name, the figures and the baselines of each measured split."""
    if run.validation:
        yield "Held-out data", run.validation, run.baseline
    if test := run.evaluation.get("test") or run.result.get("test"):
        yield "Test data", test, test.get("baseline") or {}


def quality_in_words(run: RunRecord) -> list[str]:
    """A sentence on each split: the main figure, its interval, and what it is worth beside the
    baselines."""
    return [
        _sentence(name, found, beside)
        for name, found, beside in measured_splits(run)
        if main_figure(found)
    ]


def figure_tables(run: RunRecord) -> Iterator[dict[str, Any]]:
    """A table of all figures of each split, the main ones first, and the main one as bars."""
    for name, found, beside in measured_splits(run):
        baselines = _one_of_each_name(beside)
        rows = [
            {
                "name": METRIC_NAMES.get(key, heading(key)),
                "value": value,
                "interval": bounds_text(found, key),
                "baselines": [beside[each].get(key) for each in baselines],
                "meaning": MEANINGS.get(key, ""),
            }
            for key, value in sorted(found.items(), key=lambda item: _rank(item[0]))
            if is_figure(key, value)
        ]
        yield {
            "caption": f"{name}{_counted(found)}",
            "baselines": [BASELINES.get(each, each) for each in baselines],
            "rows": rows,
            "answers": _answers(found),
            "bars": _bars(name, found, beside),
        }


def main_figure(found: Figures) -> str:
    """The figure that a model is judged by first; empty without any."""
    return next((key for key in HEADLINES if is_figure(key, found.get(key))), "")


def is_figure(key: str, value: Any) -> bool:
    """Whether an entry of a result is a finite figure of the whole split."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and key not in _NOT_FIGURES and "/" not in key


def shown_figure(key: str, value: float) -> str:
    """A figure in a sentence: shares in percent."""
    return f"{value:.1%}" if key in _SHARES else figure_text(value)


def _sentence(name: str, found: Figures, beside: Mapping[str, Figures]) -> str:
    key, what = _what_it_does(found)
    bounds = bounds_of(found, key)
    low_high = " to ".join(shown_figure(key, each) for each in bounds) if bounds else ""
    value = shown_figure(key, found[key]) + (f" (95% interval {low_high})" if bounds else "")
    where = name[0].lower() + name[1:]
    first = f"On {where}{_counted(found, ' of ')}, the model {what.format(value)}."
    return " ".join([first, *_verdicts(key, found, beside)])


def _what_it_does(found: Figures) -> tuple[str, str]:
    """The figure that says it best, and a sentence about it."""
    if is_figure("perplexity", found.get("perplexity")):
        return "perplexity", (
            "has a perplexity of {}: it chooses among as many equally likely tokens on average"
        )
    if is_figure("f1", found.get("f1")) and "exact_match" in found:
        return "f1", "answers questions with an F1 of {}"
    if is_figure("f1", found.get("f1")):
        return "f1", "finds entities with an F1 of {}"
    if is_figure("margin", found.get("margin")):
        return "accuracy", "prefers the chosen response in {} of the pairs"
    if is_figure("accuracy", found.get("accuracy")):
        of_rows = "f1_macro" in found
        what = "words" if found.get("words") else "rows" if of_rows else "hidden tokens"
        return "accuracy", f"is right on {{}} of the {what}"
    key = main_figure(found)
    return key, f"has {_with_article(METRIC_NAMES.get(key, key))} of {{}}"


def _verdicts(key: str, found: Figures, beside: Mapping[str, Figures]) -> Iterator[str]:
    """What the figure is worth beside each baseline."""
    bounds, sign = bounds_of(found, key), -1 if key in LOWER_IS_BETTER else 1
    for baseline in _one_of_each_name(beside):
        other = beside[baseline].get(key)
        if not isinstance(other, int | float) or not math.isfinite(other):
            continue
        gain = sign * (found[key] - other)
        judged = f": the model is {'better' if gain > 0 else 'worse' if gain < 0 else 'no better'}"
        if bounds and bounds[0] <= other <= bounds[1]:
            judged = ", which lies in that interval: there is no clear difference"
        name = _explained(baseline, beside[baseline])
        yield f"{name} has {shown_figure(key, other)}{judged}."


def _explained(baseline: str, figures: Figures) -> str:
    if baseline == "unigram":
        return "A unigram model, which knows only how often each token occurs,"
    if baseline == "reference":
        return "The reference model, which training began with and chance decides for,"
    if baseline == "tfidf":
        return "A linear model on TF-IDF"
    if baseline == "frequent_tag":
        return "Giving each word its most frequent tag"
    if baseline == "nearest_sentence":
        return "The sentence with the most words of the question"
    if baseline == "no_answer":
        return "Never giving an answer"
    answer = "mean" if "mae" in figures else "most frequent label"
    return f"Always answering the {answer}"


def _one_of_each_name(beside: Mapping[str, Figures]) -> list[str]:
    """The known baselines among these, the strongest first."""
    return list({BASELINES[key]: key for key in reversed(BASELINES) if key in beside}.values())[
        ::-1
    ]


def _counted(found: Figures, before: str = ": ") -> str:
    """How many rows, conversations or tokens were measured."""
    for key, unit in _COUNTS.items():
        if found.get(key):
            return f"{before}{many(found[key], unit)}"
    return ""


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _rank(key: str) -> int:
    return HEADLINES.index(key) if key in HEADLINES else len(HEADLINES)


def _answers(found: Figures) -> list[dict[str, Any]]:
    """The figures of generated responses."""
    made = found.get("answers") or {}
    intervals = made.get("interval") or {}
    return [
        {
            "name": METRIC_NAMES.get(key, heading(key)),
            "value": value,
            "interval": bounds_text({"intervals": intervals}, key),
            "baselines": [],
            "meaning": MEANINGS.get(key, ""),
        }
        for key, value in made.items()
        if is_figure(key, value)
    ]


def _bars(name: str, found: Figures, beside: Mapping[str, Figures]) -> dict[str, str] | None:
    """The main figure with its interval beside those of the baselines, as a picture."""
    key = main_figure(found)
    others = [each for each in _one_of_each_name(beside) if is_figure(key, beside[each].get(key))]
    if not others or found[key] < 0:
        return None
    rows = [PlottedFigure("this model", found[key], bounds_of(found, key))]
    rows += [PlottedFigure(BASELINES[each], beside[each][key], is_beside=True) for each in others]
    metric = METRIC_NAMES.get(key, key)
    better = "lower is better" if key in LOWER_IS_BETTER else "higher is better"
    shown = ", ".join(f"{row.name} {shown_figure(key, row.value)}" for row in rows)
    bounds = bounds_text(found, key)
    line = f" The line is the 95% interval of the model, {bounds}." if bounds else ""
    return {
        "svg": plots.as_svg(plots.draw_intervals(rows, f"{metric} ({better})", bars=True)),
        "text": f"{name}{_counted(found, ', ')}, {metric}: {shown}.{line}",
    }
