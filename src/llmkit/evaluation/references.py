"""Metrics of generated texts against reference texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from llmkit import bootstrap
from llmkit.data.records.pairs import Pairs

CHINESE = 0.3
"""Minimum share of Han characters among the letters of a Chinese text."""

REPETITION = 4
"""Length in words of the n-grams that the repetition metric counts."""

# Scripts without spaces between words: each character is a word.
_HAN_RANGES = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = rf"{_HAN_RANGES}\u3040-\u30ff\u0e00-\u0eff"
# Vowel signs and accents belong to the word, and so do joiners within it.
_LETTERS = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]"
_WORD = regex.compile(
    rf"[{_UNSPACED}]|{_LETTERS}(?:[\u200c\u200d]?\p{{M}}|[\u200c\u200d]?{_LETTERS})*", regex.V1
)
_HAN = re.compile(rf"[{_HAN_RANGES}]")
_KANA = re.compile(r"[\u3040-\u30ff]")

WORDS = "lower case; a character of Chinese, Japanese or Thai is a word"
"""The definition of a word in ROUGE, token F1, distinct-n and repetition."""

Pair = tuple[str, str]


def score_texts(predictions: Sequence[str], references: Sequence[str], seed: int) -> dict[str, Any]:
    """The metrics of predictions against one reference each, with 95% bootstrap intervals.

    BLEU and chrF come from sacrebleu (0 to 100, with its signature), ROUGE F-measures from
    rouge-score (0 to 1) on words; each character of Chinese, Japanese or Thai is a word. Exact
    match and token F1 are means over the rows. Two metrics need no reference: distinct-n (Li et al.
    2016) and the share of 4-grams that appear earlier in the text (Welleck et al. 2020, rep-4).
    """
    pairs = list(zip(predictions, references, strict=True))
    each = by_row(pairs)
    means = {name: float(np.mean(values)) for name, values in each.items()}
    return {
        "examples": len(pairs),
        **_sacrebleu(predictions, references),
        **means,
        **distinct(predictions),
        "empty": sum(not text.strip() for text in predictions),
        "interval": _intervals(each, seed),
    }


def by_row(pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """The per-row metrics, whose means are reported."""
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=_Words())
    rouge = [scorer.score(reference, prediction) for prediction, reference in pairs]
    own: dict[str, Callable[[Pair], float]] = {
        "exact_match": lambda pair: float(pair[0].strip() == pair[1].strip()),
        "token_f1": lambda pair: token_f1(*pair),
        "repetition": lambda pair: repetition(pair[0]),
    }
    return {
        **{name: [float(row[name].fmeasure) for row in rouge] for name in names},
        **{name: [figure(pair) for pair in pairs] for name, figure in own.items()},
    }


def reference_samples(pairs: Pairs, predictions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every row with its prediction, its reference and its metrics."""
    each = by_row(list(zip(predictions, pairs.references, strict=True)))
    for row, (path, number) in enumerate(pairs.places):
        prompt = {"prompt": pairs.prompts[row]} if pairs.prompts else {}
        yield {
            "file": path,
            "row": number,
            **prompt,
            "prediction": predictions[row],
            "reference": pairs.references[row],
            **{name: values[row] for name, values in each.items()},
        }


def words(text: str) -> list[str]:
    """The words of a text in lower case; in scripts without spaces, each character is a word.

    On ASCII text these equal the tokens of rouge-score.
    """
    found: list[str] = _WORD.findall(text.lower())
    return found


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of word precision and recall (Rajpurkar et al. 2016); 1 for two texts without
    words."""
    predicted, wanted = Counter(words(prediction)), Counter(words(reference))
    common = (predicted & wanted).total()
    whole = predicted.total() + wanted.total()
    return 2 * common / whole if whole else 1.0


def distinct(texts: Iterable[str]) -> dict[str, float]:
    """The share of distinct n-grams among all n-grams of all texts, for n of 1, 2 and 3."""
    split = [words(text) for text in texts]
    found = {}
    for n in (1, 2, 3):
        runs = [run for text in split for run in _runs(text, n)]
        found[f"distinct_{n}"] = len(set(runs)) / len(runs) if runs else 0.0
    return found


def repetition(text: str) -> float:
    """The share of 4-grams that appear earlier in the text."""
    runs = _runs(words(text), REPETITION)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def language(references: Sequence[str]) -> str:
    """The name of sacrebleu's tokenizer for these texts: `zh`, `char` or `13a`."""
    text = "".join(references)
    letters = max(1, sum(map(str.isalpha, text)))
    if len(_KANA.findall(text)) / letters > CHINESE:
        return "char"
    return "zh" if len(_HAN.findall(text)) / letters > CHINESE else "13a"


class _Words:
    """Adapts `words` to the tokenizer interface of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _sacrebleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU(tokenize=language(references))), ("chrf", CHRF())):
        found[name] = metric.corpus_score(list(predictions), [list(references)]).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def _intervals(each: dict[str, list[float]], seed: int) -> dict[str, Any]:
    values = np.column_stack([np.asarray(column) for column in each.values()])
    drawn = bootstrap.resample(values, seed) / len(values)
    ranges = {
        name: list(bootstrap.interval(column)) for name, column in zip(each, drawn.T, strict=True)
    }
    return {"level": bootstrap.LEVEL, **ranges}


def _runs(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
