"""Summarize a training run in a few lines: what was done, how good it is, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.reporting.format import clock, many, short

_Figures = Mapping[str, Any]


def is_training(figures: _Figures) -> bool:
    """Whether a result is from a run that trained a model."""
    return "model_dir" in figures and "train_loss" in figures


def of_training(figures: _Figures) -> Iterator[str]:
    """Yields the lines, each at most a screen wide except for paths; figures have baselines."""
    step = figures["step"]
    speed = next(
        (f", {value:,.0f} {name.replace('_per_second', '')}/s"
         for name, value in figures.items() if name.endswith("_per_second") and value),
        "",
    )  # fmt: skip
    yield (
        f"Done: {many(step, 'step')} in {clock(figures['seconds'])} "
        f"({short(figures['parameters'])} parameters{speed})."
    )
    for split in ("validation", "test"):
        found = figures.get(split) or {}
        beside = figures.get("baseline", {}) if split == "validation" else found.get("baseline", {})
        yield from _quality(split, found, beside)
    if figures.get("best_step") not in (None, step):
        yield f"The saved model is that of step {figures['best_step']:,}, the best in validation."
    yield f"  model    {figures['model_dir']}"
    yield f"  curve    {figures['run_dir']}/loss.png"
    yield f"  report   {figures['run_dir']}/report.html"
    for picture in figures.get("pictures", {}).values():
        yield f"  mistakes {picture}"
    yield f"  next     {_next_command(figures)}"


def _quality(split: str, found: _Figures, beside: _Figures) -> Iterator[str]:
    name = "Held-out data" if split == "validation" else "Test data"
    if text := main_figures(found, beside):
        yield f"{name}: {text}."


def main_figures(found: _Figures, beside: _Figures) -> str:
    """The main figures in words, with those of baselines; empty without any."""
    shown = (
        _of_numbers,
        _of_answers,
        _of_entities,
        _of_classifier,
        _of_pairs,
        _of_masked,
        _of_text,
    )
    return next(filter(None, (each(found, beside) for each in shown)), "")


def domain_rows(
    domains: Mapping[str, _Figures] | Sequence[Mapping[str, str]],
) -> list[dict[str, str]]:
    """The rows of a table of the domains of a mixture, with gains and losses where the run began
    with a pretrained model. Older runs recorded the rows themselves."""
    if not isinstance(domains, Mapping):
        return [dict(row) for row in domains]
    return [{"domain": name, **_domain_row(found)} for name, found in domains.items()]


def of_overlap(name: str, overlap: str, what: str, rest: _Figures | None) -> str:
    """The warning that a model was trained on part of the data; `rest` has the figures of the
    documents or rows that it was not trained on, None if that is not known of each."""
    warning = f"{name} was trained on {overlap}: these are not held-out figures"
    if rest is None:
        return warning
    count = next((rest[key] for key in ("documents", "examples", "pairs") if key in rest), 0)
    if not count:
        return f"{warning}, and there is no {what} that it was not trained on"
    figures = main_figures(rest, {})
    return f"{warning}; on the {many(count, what)} that it was not trained on: {figures}"


def _of_answers(found: _Figures, beside: _Figures) -> str:
    if "exact_match" not in found or "f1" not in found:
        return ""
    names = (("nearest_sentence", "nearest sentence"), ("no_answer", "never an answer"))
    others = [f"{label} {beside[key]['f1']:.3f}" for key, label in names if key in beside]
    return (
        f"F1 of answers {found['f1']:.3f}{_interval(found, 'f1')}{_beside(others)}, "
        f"exact match {found['exact_match']:.3f}"
    )


def _of_entities(found: _Figures, beside: _Figures) -> str:
    if "f1" not in found or "precision" not in found:
        return ""
    others = [f"{_FREQUENT} {beside['frequent_tag']['f1']:.3f}"] if "frequent_tag" in beside else []
    return (
        f"F1 of entities {found['f1']:.3f}{_interval(found, 'f1')}{_beside(others)}, "
        f"precision {found['precision']:.3f}, recall {found['recall']:.3f}"
    )


_FREQUENT = "most frequent tags"
"""The baseline of taggers."""


def _of_classifier(found: _Figures, beside: _Figures) -> str:
    if "accuracy" not in found or "f1_macro" not in found:
        return ""
    others = [
        f"{label} {beside[key]['accuracy']:.3f}"
        for key, label in (
            ("tfidf", "TF-IDF"),
            ("majority", "most frequent label"),
            ("frequent_tag", _FREQUENT),
        )
        if key in beside
    ]
    return (
        f"accuracy {found['accuracy']:.3f}{_interval(found, 'accuracy')}{_beside(others)}, "
        f"macro F1 {found['f1_macro']:.3f}"
    )


def _of_numbers(found: _Figures, beside: _Figures) -> str:
    if "mae" not in found:
        return ""
    others = [
        f"{label} {beside[key]['mae']:.4g}"
        for key, label in (("tfidf", "TF-IDF"), ("majority", "always the mean"))
        if key in beside
    ]
    error = f"mean absolute error {found['mae']:.4g}{_interval(found, 'mae')}"
    return f"{error}{_beside(others)}, Pearson correlation {found['pearson']:.3f}"


def _of_pairs(found: _Figures, beside: _Figures) -> str:
    if "margin" not in found:
        return ""
    reference = beside.get("reference", {})
    loss = ""
    if "loss" in found and "loss" in reference:
        loss = f", loss {found['loss']:.4g} [reference model {reference['loss']:.4g}]"
    return (
        f"the chosen response preferred in {found['accuracy']:.1%} of the pairs"
        f"{_interval(found, 'accuracy')} [chance 50%]{loss}, margin {found['margin']:.3g}"
    )


def _of_masked(found: _Figures, beside: _Figures) -> str:
    if "accuracy" not in found:
        return ""
    unigram = beside.get("unigram", {})
    others = [f"most frequent token {unigram['accuracy']:.1%}"] if "accuracy" in unigram else []
    right = f"{found['accuracy']:.1%} of the hidden tokens predicted{_beside(others)}"
    related = ""
    if "next_sentence_accuracy" in found:
        related = f", next sentence {found['next_sentence_accuracy']:.1%} [chance 50%]"
    return f"{right}, loss {found['loss']:.3f}{related}"


def _of_text(found: _Figures, beside: _Figures) -> str:
    if isinstance(pseudo := found.get("pseudo_perplexity"), int | float):
        return f"pseudo-perplexity {pseudo:.4g}"
    if not isinstance(found.get("perplexity"), int | float):
        return ""
    unigram = beside.get("unigram", {})
    others = [f"unigram model {unigram['perplexity']:.4g}"] if "perplexity" in unigram else []
    per_byte = found.get("bits_per_byte")
    bits = f", {per_byte:.3f} bits per byte" if per_byte is not None else ""
    if bits and "bits_per_byte" in unigram:
        bits += f" (unigram model {unigram['bits_per_byte']:.3f})"
    written = _of_written(found, beside)
    return f"{written}perplexity {found['perplexity']:.4g}{_beside(others)}{bits}"


def _of_written(found: _Figures, beside: _Figures) -> str:
    """BLEU and chrF of generated texts, to precede other figures; empty without any."""
    if not isinstance(found.get("bleu"), int | float):
        return ""
    shown = []
    for name, label in (("bleu", "BLEU"), ("chrf", "chrF")):
        others = [
            f"{what} {beside[key][name]:.1f}"
            for key, what in (("nearest_target", "nearest target"), ("copied_source", "copied"))
            if key in beside
        ]
        shown.append(f"{label} {found[name]:.1f}{_beside(others)}")
    return f"{', '.join(shown)}, "


def _interval(found: _Figures, name: str) -> str:
    bounds = found.get("intervals", {}).get(name)
    return f" (95% interval {bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""


def _beside(others: list[str]) -> str:
    return f" [{', '.join(others)}]" if others else ""


def _domain_row(found: _Figures) -> dict[str, str]:
    row = {"share": f"{found['share']:.1%}", "epochs": f"{found['epochs']:.2f}"}
    before = found.get("before", {})
    for key, after in found.get("after", {}).items():
        shown = f"{after:.4g}"
        if key in before:
            shown = f"{before[key]:.4g} -> {shown} ({after / before[key] - 1:+.1%})"
        row[key] = shown
    if (change := found.get("change", {}).get("loss")) is not None:
        row["result"] = "gained" if change < 0 else "lost"
    return row


def _next_command(figures: _Figures) -> str:
    run, found = figures["run_dir"], figures.get("validation") or figures.get("test") or {}
    if figures["command"] == "finetune" and "exact_match" in found:
        return f"llmkit predict --model {run} --csv questions.jsonl"
    if figures["command"] == "finetune" and ("f1_macro" in found or "mae" in found):
        return f"llmkit predict --model {run} --csv new.csv"
    is_masked = "margin" not in found and _of_masked(found, {})
    prompt = "a text with a [MASK]" if is_masked else "..."
    return f'llmkit generate --model {run} --prompt "{prompt}"'


FEWEST_STEPS = 50
"""Optimizer steps below which a new language model has hardly learned anything."""

UNTRAINED_STEPS = 10
"""Optimizer steps below which it has learned nothing."""

FAR = 1.0
"""Nats between held-out and training loss from which to warn: e times the perplexity."""

LONGER = "; train longer with train.num_train_epochs, or try another train.learning_rate"
PRETRAINED = "; start from a pretrained encoder with --model, or train longer"


def of_steps(step: int, from_scratch: bool) -> Iterator[str]:
    """Warns if a run was too short for a new language model to learn much."""
    if from_scratch and step < FEWEST_STEPS:
        yield (
            f"only {many(step, 'optimizer step')}: the model is "
            f"{'untrained' if step < UNTRAINED_STEPS else 'hardly trained'}; a new model needs "
            "hundreds of steps to learn a language: raise train.max_steps, train.num_train_epochs "
            "or train.max_minutes"
        )


def of_language_model(
    validation: _Figures, baseline: _Figures, train_loss: float | None
) -> Iterator[str]:
    """Warns if held-out loss (nats) is no better than the unigram model's, or else if it is far
    above the training loss."""
    loss = validation.get("loss")
    if loss is None or train_loss is None:  # nothing was trained
        return
    if loss >= baseline["loss"]:
        yield (
            f"the held-out loss of {loss:.2f} is no better than that of a unigram model, "
            f"{baseline['loss']:.2f}, which knows only how often each token occurs: train longer, "
            f"or check that the held-out text is like the training text (training loss "
            f"{train_loss:.2f})"
        )
    elif loss - train_loss > FAR:
        yield (
            f"the held-out loss of {loss:.2f} is far above the training loss of {train_loss:.2f}: "
            "the held-out text is unlike the training text, or the model has memorised it; compare "
            "the two texts, train on more text, or train for fewer epochs"
        )


def of_measured_text(name: str, figures: _Figures) -> Iterator[str]:
    """Warns if a language model predicts a text no better than the unigram model of that text."""
    for key in ("perplexity", "pseudo_perplexity"):
        found, baseline = figures.get(key), figures["baseline"].get(key)
        if found is not None and baseline is not None and found >= baseline:
            yield (
                f"{name}: a {key.replace('_', '-')} of {found:.4g} is no better than the "
                f"{baseline:.4g} of a unigram model, which knows only how often each token of this "
                "text occurs: the model has not learned this kind of text"
            )


def of_classifier(name: str, figures: _Figures, advice: str) -> Iterator[str]:
    """Warns if a classifier is no better than its baselines on the rows `name`, with `advice`."""
    beside = figures.get("baseline", {})
    if "mse" in figures:
        yield from _of_regression(name, figures, beside)
    elif (majority := _majority(beside)) and majority["accuracy"] == 1:
        yield (
            f"{name}: all rows have the same label, so their figures do not show whether the "
            "classifier distinguishes labels"
        )
    elif majority and _is_behind(figures, majority, or_equal=True):
        yield (
            f"{name}: accuracy {_with_interval(figures, 'accuracy')} is no better than always "
            f"predicting the most frequent label ({majority['accuracy']:.3f}): the classifier has "
            f"not learned to distinguish the labels{advice}"
        )
    elif (tfidf := beside.get("tfidf")) and _is_behind(figures, tfidf):
        yield (
            f"{name}: accuracy {_with_interval(figures, 'accuracy')} is worse than TF-IDF with "
            f"logistic regression ({tfidf['accuracy']:.3f}), and so is F1{advice}"
        )


def of_tagger(name: str, figures: _Figures, advice: str) -> Iterator[str]:
    """Warns if a tagger is no better than its baseline on the rows `name`, with `advice`."""
    usual = figures.get("baseline", {}).get("frequent_tag")
    metric, what = ("f1", "F1 of entities") if "precision" in figures else ("accuracy", "accuracy")
    if usual and figures[metric] <= usual[metric] and figures[metric] < 1:
        yield (
            f"{name}: {what} {_with_interval(figures, metric)} is no better than giving each word "
            f"its most frequent tag ({usual[metric]:.4g}): the tagger has not learned to use the "
            f"context of words{advice}"
        )


def of_preferences(name: str, figures: _Figures, unchanged: _Figures) -> Iterator[str]:
    """Warns if a model prefers the chosen responses of the pairs `name` no more than the reference
    does, whose figures are `unchanged`, and if it makes them less likely."""
    bounds = figures.get("intervals", {})
    loss, accuracy = figures.get("loss"), _with_interval(figures, "accuracy")
    is_chance = bounds.get("accuracy", [figures["accuracy"]])[0] <= unchanged["accuracy"]
    is_worse = loss is not None and loss >= unchanged["loss"]
    if is_chance or is_worse:
        beside = f", and the loss of {loss:.4g} " if loss is not None else ""
        if beside:
            beside += f"is {'no better' if is_worse else 'little better'} than that of the "
            beside += f"reference model ({unchanged['loss']:.4g})"
        yield (
            f"{name}: accuracy {accuracy}; chance is 0.5{beside}: the model has not learned which "
            "responses are preferred; train longer, raise train.learning_rate, or add pairs"
        )
    if bounds.get("chosen_gain", [0, figures["chosen_gain"]])[1] < 0:
        yield (
            f"{name}: the chosen responses have become less likely than under the reference model, "
            f"by {-figures['chosen_gain']:.3g} on average: the model may avoid both responses; "
            "add train.sft_weight=1, raise train.beta, or lower train.learning_rate"
        )


def of_answerer(name: str, figures: _Figures, advice: str) -> Iterator[str]:
    """Warns if answers are no better than those of a baseline on the rows `name`."""
    beside = figures.get("baseline", {})
    best = max(beside, key=lambda each: float(beside[each]["f1"]), default=None)
    if best is not None and figures["f1"] <= beside[best]["f1"] and figures["f1"] < 1:
        shown = {"nearest_sentence": "the sentence with the most words of the question"}
        yield (
            f"{name}: F1 of answers {_with_interval(figures, 'f1')} is no better than "
            f"{shown.get(best, 'never giving an answer')} ({beside[best]['f1']:.4g}): the model "
            f"has not learned to answer{advice}"
        )


def _of_regression(name: str, figures: _Figures, beside: _Figures) -> Iterator[str]:
    constant, tfidf = _majority(beside), beside.get("tfidf")
    error = f"mean squared error {_with_interval(figures, 'mse')}"
    if constant and constant["mse"] == 0:
        yield (
            f"{name}: all rows have the same number, so their figures do not show whether the "
            "model predicts numbers"
        )
    elif constant and figures["mse"] >= constant["mse"]:
        yield (
            f"{name}: {error} is no better than always predicting the mean "
            f"({constant['mse']:.4g}): the model has not learned to predict the number"
        )
    elif tfidf and figures["mse"] > tfidf["mse"]:
        yield f"{name}: {error} is worse than TF-IDF with ridge regression ({tfidf['mse']:.4g})"


def _majority(beside: _Figures) -> _Figures | None:
    return beside.get("majority") or beside.get("majority_of_these_rows")


def _is_behind(figures: _Figures, other: _Figures, or_equal: bool = False) -> bool:
    """Whether accuracy and macro F1 are both lower; only one lower is a trade-off."""
    pairs = [(figures[name], other[name]) for name in ("accuracy", "f1_macro")]
    return all(one < two or (or_equal and one == two) for one, two in pairs)


def _with_interval(figures: _Figures, name: str) -> str:
    interval = figures.get("intervals", {}).get(name)
    shown = f"{figures[name]:.4g}"
    return f"{shown} (95% interval {interval[0]:.4g} to {interval[1]:.4g})" if interval else shown
