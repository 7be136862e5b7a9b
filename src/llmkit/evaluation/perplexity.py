"""Metrics of a text from its scores: perplexity, bits per byte, and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmkit import bootstrap

if TYPE_CHECKING:
    from llmkit.evaluation.likelihood import Scores
    from llmkit.evaluation.segments import Segments, Survey

_PSEUDO = ("nll", "perplexity", "bits_per_byte", "bits_per_character")

MIN_SEGMENTS = 5
"""Minimum number of segments for a confidence interval."""


def figures(scores: Scores, segments: Segments, survey: Survey, seed: int) -> dict[str, Any]:
    """The metrics of the whole text; every mean is a sum divided once."""
    nll, tokens = float(scores.nll.sum()), int(scores.tokens.sum())
    n_bytes = round(segments.n_bytes.sum())
    return {
        "documents": len(segments.of_document),
        "tokens": tokens,
        "bytes": n_bytes,
        "characters": survey.characters,
        "nll": nll,
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": bits(nll) / n_bytes,
        "bits_per_character": bits(nll) / survey.characters,
        "interval": _interval(scores, segments, seed),
        "baseline": _unigram(scores, n_bytes),
    }


def pseudo(found: Any) -> Any:
    """The metrics of a masked model, renamed: a pseudo-perplexity is not a perplexity."""
    return _changed(
        found, lambda name, value: (f"pseudo_{name}" if name in _PSEUDO else name, value)
    )


def without_bits(found: Any) -> Any:
    """The metrics without bits per byte or character: a lossy tokenizer would look too good."""
    return _changed(found, lambda name, value: (name, None if "bits_per" in name else value))


def by_document(scores: Scores, segments: Segments, survey: Survey) -> list[dict[str, Any]]:
    """A row for each document, in the order of the text."""
    sums = segments.by_document(_sums(scores, segments)).tolist()
    domains = [survey.domains[number] for number in survey.domain_of_document]
    return [
        {"document": number, "domain": domain, **_row(*row)}
        for number, (domain, row) in enumerate(zip(domains, sums, strict=True), 1)
    ]


def of_documents(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of some rows of `by_document` together."""
    sums = (sum(row[key] for row in rows) for key in ("nll", "tokens", "bytes"))
    return {"documents": len(rows), **_row(*sums)}


def by_domain(scores: Scores, segments: Segments, survey: Survey) -> list[dict[str, Any]]:
    """A row for each domain."""
    sums = segments.by_document(_sums(scores, segments))
    domain = np.asarray(survey.domain_of_document)
    whole = np.zeros((len(survey.domains), sums.shape[1]))
    np.add.at(whole, domain, sums)
    documents = np.bincount(domain, minlength=len(survey.domains)).tolist()
    return [
        {"domain": name, "documents": count, **_row(*row)}
        for name, count, row in zip(survey.domains, documents, whole.tolist(), strict=True)
    ]


def comparison(
    names: Sequence[str], scores: Sequence[Scores], segments: Segments, seed: int
) -> dict[str, Any]:
    """The difference between two models in bits per byte on the same bytes, with paired interval.

    `better` names the model that the interval favours, or is None if the interval contains zero.
    """
    nll = np.stack([each.nll for each in scores], axis=1)  # [segments, 2]
    sums = np.column_stack([nll, segments.n_bytes])
    low, high = None, None
    if len(sums) >= MIN_SEGMENTS:
        drawn = bootstrap.resample(sums, seed)
        low, high = bootstrap.interval(bits(drawn[:, 0] - drawn[:, 1]) / drawn[:, 2])
    first, second, n_bytes = sums.sum(0).tolist()
    better = None
    if low is not None and high is not None and low * high > 0:
        better = names[0] if high < 0 else names[1]
    return {
        "model": names[0],
        "other": names[1],
        "bits_per_byte_difference": bits(first - second) / n_bytes,
        "low": low,
        "high": high,
        "better": better,
    }


def perplexity(nll: float, tokens: float) -> float:
    """exp of the mean negative log-likelihood in nats, capped at e^700."""
    return math.exp(min(nll / max(1, tokens), 700.0))


def bits(nats: Any) -> Any:
    """Converts nats to bits."""
    return nats / math.log(2)


def _changed(found: Any, change: Callable[[str, Any], tuple[str, Any]]) -> Any:
    """The metrics, nested at any depth, with `change` applied to each name and value."""
    if isinstance(found, list):
        return [_changed(each, change) for each in found]
    if not isinstance(found, dict):
        return found
    return dict(change(name, _changed(value, change)) for name, value in found.items())


def _sums(scores: Scores, segments: Segments) -> NDArray[np.float64]:
    return np.column_stack([scores.nll, scores.tokens, segments.n_bytes])


def _row(nll: float, tokens: float, n_bytes: float) -> dict[str, Any]:
    return {
        "tokens": int(tokens),
        "bytes": round(n_bytes),
        "nll": nll,
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": bits(nll) / n_bytes,
    }


def _interval(scores: Scores, segments: Segments, seed: int) -> dict[str, Any] | None:
    if len(segments.begins) < MIN_SEGMENTS:
        return None
    nll, tokens, n_bytes = bootstrap.resample(_sums(scores, segments), seed).T
    return {
        "level": bootstrap.LEVEL,
        "perplexity": list(bootstrap.interval(np.exp(np.minimum(nll / tokens, 700.0)))),
        "bits_per_byte": list(bootstrap.interval(bits(nll) / n_bytes)),
        "over": f"{len(segments.begins)} {segments.kind}, {bootstrap.RESAMPLES} resamples",
    }


def _unigram(scores: Scores, n_bytes: int) -> dict[str, Any]:
    """The baseline that a model must at least beat: the frequencies of the scored tokens alone."""
    seen = scores.frequency[scores.frequency > 0].astype(np.float64)
    nll = float((seen * np.log(seen.sum() / seen)).sum())
    return {
        "name": "unigram, fitted to this very text",
        "perplexity": perplexity(nll, float(seen.sum())),
        "bits_per_byte": bits(nll) / n_bytes,
    }
