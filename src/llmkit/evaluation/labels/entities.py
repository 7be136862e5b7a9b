"""Metrics of tagged words: of entities as seqeval counts them, or of words in a plain scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit import bootstrap
from llmkit.data.records.tagging.tags import OUTSIDE, Entities, TagSet
from llmkit.evaluation.labels import label_metrics
from llmkit.inference.labels.classify import AnyArray

_STRICT = ("f1", "precision", "recall")

MAIN_FIGURES = ("f1", "precision", "recall", "f1_macro", "accuracy")
"""Figures that get an interval."""


class Alignment(NamedTuple):
    """Which actual and predicted entities were taken for one another."""

    actual: NDArray[np.int64]
    """[pairs], the index of an actual entity, or -1."""
    predicted: NDArray[np.int64]
    """[pairs], the index of a predicted entity, or -1."""


@dataclass(frozen=True)
class ScoredTags:
    """The actual and the predicted tags of words, and the entities that they spell."""

    known: TagSet
    actual: NDArray[np.int64]
    """[words]"""
    predicted: NDArray[np.int64]
    """[words]"""
    starts: NDArray[np.int64]
    """[rows], the first word of each."""

    @cached_property
    def entities(self) -> tuple[Entities, Entities]:
        """The actual and the predicted entities, read leniently."""
        find = self.known.entities
        return find(self.actual, self.starts), find(self.predicted, self.starts)

    def counts(self, strict: bool = False) -> dict[str, AnyArray]:
        """For each type, the entities that are exactly right, predicted and actual; `strict` counts
        only those whose tags follow the scheme."""
        found = [each.chosen(each.is_strict) if strict else each for each in self.entities]
        keys = [self._keys(each) for each in found]
        size, kind = {"minlength": len(self.known.types)}, found[0].kind
        return {
            "hits": np.bincount(kind[np.isin(keys[0], keys[1])], **size),
            "predicted": np.bincount(found[1].kind, **size),
            "actual": np.bincount(kind, **size),
        }

    def figures(self) -> dict[str, float]:
        """The metrics of all words."""
        words = label_metrics.single_label(self.word_counts())
        if not self.known.has_entities:
            return words
        lenient, strict = entity_figures(self.counts()), entity_figures(self.counts(strict=True))
        named = {f"{name}_strict": strict[name] for name in _STRICT}
        return {**lenient, **named, "accuracy": words["accuracy"]}

    def word_counts(self) -> dict[str, AnyArray]:
        """For each tag, the words that are right, predicted and actual."""
        return label_metrics.count_labels(self.actual, self.predicted, len(self.known))

    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each type, also strictly, or of each tag."""
        if not self.known.has_entities:
            return label_metrics.per_class(self.word_counts(), self.known.names)
        types = self.known.types
        strict = label_metrics.per_class(self.counts(strict=True), types)
        return {
            name: {**each, **{f"{key}_strict": strict[name][key] for key in _STRICT}}
            for name, each in label_metrics.per_class(self.counts(), types).items()
        }

    @cached_property
    def alignment(self) -> Alignment:
        """Each actual entity with the predicted one that shares most words with it, or with -1; and
        each predicted entity that shares none, with -1. Equal types decide ties."""
        actual, predicted = self.entities
        owners = [np.full(len(self.actual), -1, dtype=np.int64) for _ in range(2)]
        for owner, each in zip(owners, (actual, predicted), strict=True):
            lengths = each.end - each.first
            words = np.repeat(each.first - np.cumsum(lengths) + lengths, lengths)
            owner[words + np.arange(len(words))] = np.repeat(np.arange(len(each)), lengths)
        both = (owners[0] >= 0) & (owners[1] >= 0)
        pairs, shared = np.unique(
            np.stack([owners[0][both], owners[1][both]], axis=1), axis=0, return_counts=True
        )
        alike = actual.kind[pairs[:, 0]] == predicted.kind[pairs[:, 1]]
        order = np.lexsort((pairs[:, 1], ~alike, -shared, pairs[:, 0]))
        first, where = np.unique(pairs[order, 0], return_index=True)
        partner = np.full(len(actual), -1, dtype=np.int64)
        partner[first] = pairs[order[where], 1]
        alone = np.setdiff1d(np.arange(len(predicted)), pairs[:, 1])
        return Alignment(
            np.concatenate([np.arange(len(actual)), np.full(len(alone), -1)]),
            np.concatenate([partner, alone]),
        )

    @cached_property
    def exact(self) -> NDArray[np.bool_]:
        """[pairs of the alignment], whether an entity was predicted exactly."""
        actual, predicted = map(self._keys, self.entities)
        a, p = self.alignment
        return np.asarray(np.append(actual, -1)[a] == np.append(predicted, -2)[p])

    def confusion(self) -> tuple[list[str], list[list[int]]]:
        """The names, and the confusion matrix [actual, predicted] of types by the alignment, where
        `O` stands for no entity; of words in a plain scheme."""
        if not self.known.has_entities:
            names, size = list(self.known.names), len(self.known)
            matrix = label_metrics.count_confusions(self.actual, self.predicted, size)
            return names, matrix.tolist()
        actual, predicted = self.entities
        names, none = [*self.known.types, OUTSIDE], len(self.known.types)
        kinds = [np.append(each.kind, none) for each in (actual, predicted)]
        rows, columns = kinds[0][self.alignment.actual], kinds[1][self.alignment.predicted]
        matrix = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(matrix, (rows, columns), 1)
        return names, matrix.tolist()

    def errors(self) -> dict[str, int]:
        """What became of entities: `exact`, with the right type but `wrong_boundaries`, with the
        `wrong_type`, `missed`, or `spurious`."""
        actual, predicted = self.entities
        a, p = self.alignment
        alike = np.append(actual.kind, -1)[a] == np.append(predicted.kind, -2)[p]
        both = (a >= 0) & (p >= 0)
        return {
            "exact": int(self.exact.sum()),
            "wrong_boundaries": int((alike & ~self.exact).sum()),
            "wrong_type": int((both & ~alike).sum()),
            "missed": int((p < 0).sum()),
            "spurious": int((a < 0).sum()),
        }

    def row_sums(self) -> NDArray[np.float64]:
        """[rows, sums]: words, right words, and for each type the entities that are exactly right,
        predicted and actual, or for each tag the words."""
        n_rows, size = len(self.starts), len(self.known.classes)
        bounds = np.append(self.starts, len(self.actual))
        words = np.diff(bounds)
        right = np.concatenate([[0], np.cumsum(self.actual == self.predicted)])
        columns = [words[:, None], np.diff(right[bounds])[:, None]]
        if self.known.has_entities:
            actual, predicted = self.entities
            hit = np.isin(self._keys(actual), self._keys(predicted))
            parts = [(actual.first[hit], actual.kind[hit]), (predicted.first, predicted.kind),
                     (actual.first, actual.kind)]  # fmt: skip
        else:
            hit, every = self.actual == self.predicted, np.arange(len(self.actual))
            parts = [(every[hit], self.actual[hit]), (every, self.predicted), (every, self.actual)]
        for first, kind in parts:
            row = np.searchsorted(self.starts, first, side="right") - 1
            cells = np.bincount(row * size + kind, minlength=n_rows * size)
            columns.append(cells.reshape(n_rows, size))
        return np.hstack(columns).astype(np.float64)

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """The 95% intervals of the main metrics, by resampling rows."""
        drawn = figures_of_sums(bootstrap.resample(self.row_sums(), seed), self.known.has_entities)
        return {name: bootstrap.interval(drawn[name]) for name in MAIN_FIGURES if name in drawn}

    def _keys(self, found: Entities) -> NDArray[np.int64]:
        """One number for each entity, equal for equal words and types."""
        place = found.first * (len(self.actual) + 1) + found.end
        return place * max(1, len(self.known.types)) + found.kind


def entity_figures(counts: Mapping[str, AnyArray]) -> dict[str, float]:
    """F1, precision and recall over all entities, and the mean F1 of the types that occur."""
    hits, predicted, actual = (counts[name] for name in ("hits", "predicted", "actual"))
    sums = np.concatenate([np.zeros(2), hits, predicted, actual])
    found = figures_of_sums(sums.astype(np.float64), has_entities=True)
    return {name: float(found[name]) for name in ("f1", "precision", "recall", "f1_macro")}


def figures_of_sums(sums: NDArray[np.float64], has_entities: bool) -> dict[str, AnyArray]:
    """Metrics from the totals [..., sums] of `ScoredTags.row_sums`; 0 where nothing occurs."""
    hits, predicted, actual = np.split(sums[..., 2:], 3, axis=-1)
    occurs = predicted + actual > 0
    each = 2 * hits / np.maximum(1, predicted + actual)
    found: dict[str, Any] = {"accuracy": sums[..., 1] / np.maximum(1, sums[..., 0])}
    found["f1_macro"] = each.sum(-1) / np.maximum(1, occurs.sum(-1))
    if has_entities:
        right, made, real = (values.sum(-1) for values in (hits, predicted, actual))
        found["precision"] = right / np.maximum(1, made)
        found["recall"] = right / np.maximum(1, real)
        found["f1"] = 2 * right / np.maximum(1, made + real)
    return found
