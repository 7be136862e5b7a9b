"""Evaluate taggers on tagged words: their metrics, baseline, and worst mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from llmkit.config.schema import Config
from llmkit.data.examples.tagged import NO_WORD, TaggedTable, TokenWindows
from llmkit.data.readers.files import Source
from llmkit.data.records.tagging.tagged_dataset import load_known_tags
from llmkit.data.records.tagging.tags import OUTSIDE
from llmkit.data.records.tagging.words import unmarked_text
from llmkit.distributed.processes import Processes
from llmkit.evaluation.labels.entities import ScoredTags, figures_of_sums
from llmkit.evaluation.labels.measuring import (
    LoadPart,
    MeasuredRows,
    RowEvaluation,
    Score,
    check_finite_outputs,
)
from llmkit.inference.labels import tag
from llmkit.inference.labels.classify import AnyArray
from llmkit.inference.labels.tag import Tagger
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out, summary
from llmkit.reporting.console import Console
from llmkit.reporting.held_out import HeldOut

_CONTEXT = 60
"""Maximum number of characters shown on each side of a mistake."""


@dataclass(frozen=True)
class MeasuredTagger(MeasuredRows[TaggedTable]):
    """The results of one tagger."""

    tags: NDArray[np.int64]
    """[words], as predicted."""
    losses: NDArray[np.float64]
    """[words], the negative log-likelihood of each actual tag; NaN where no token predicts it."""

    @property
    def scored(self) -> ScoredTags:
        """The actual beside the predicted tags."""
        return _scored(self.table, self.tags)

    def figures_of(self, chosen: NDArray[np.bool_], seed: int) -> dict[str, Any]:
        """The metrics on the chosen rows alone."""
        words = np.repeat(chosen, np.diff(self.table.starts))
        table, tags = self.table.part(chosen), self.tags[words]
        loss = _mean_loss(self.losses[words])
        return {"examples": len(table), "loss": loss, **_scored(table, tags).figures()}

    def samples(self) -> Iterator[dict[str, Any]]:
        """Every row with its actual and its predicted spans."""
        table, known = self.table, self.table.labels
        for row, (file, number) in enumerate(table.places):
            first, last = table.starts[row : row + 2]
            (text,), words = table.texts[row], table.words[row]
            shown = [
                [f"{span['label']} {span['text']}" for span in tag.tagged_spans(
                    known, text, words, tags[first:last], np.ones(last - first))]
                for tags in (table.targets, self.tags)
            ]  # fmt: skip
            place = {"file": file, "row": number, "label": shown[0], "predicted": shown[1]}
            yield {**place, "text": unmarked_text(text)}

    def worst(self, most: int) -> Iterator[dict[str, Any]]:
        """The mistakes with the highest loss: entities, or words in a plain scheme."""
        for mistake in sorted(self._mistakes(), key=lambda each: -each.loss)[:most]:
            row = int(np.searchsorted(self.table.starts, mistake.first, side="right")) - 1
            file, number = self.table.places[row]
            label, predicted = mistake.label, mistake.predicted
            yield {
                "file": file,
                "row": number,
                "label": label,
                "predicted": predicted,
                "loss": mistake.loss,
                "text": _context(self.table, row, mistake),
            }

    def _mistakes(self) -> Iterator[_Mistake]:
        table, scored, losses = self.table, self.scored, np.nan_to_num(self.losses)
        before = np.concatenate([[0.0], np.cumsum(losses)])
        if not table.labels.has_entities:
            names = table.labels.names
            for word in np.flatnonzero(self.tags != table.targets).tolist():
                actual, predicted = names[table.targets[word]], names[self.tags[word]]
                yield _Mistake(word, word + 1, actual, predicted, float(losses[word]))
            return
        wrong = np.flatnonzero(~scored.exact).tolist()
        for pair in wrong:
            places, shown = [], []
            found = (each[pair] for each in scored.alignment)
            for index, each in zip(found, scored.entities, strict=True):
                kind = OUTSIDE
                if index >= 0:
                    places += [int(each.first[index]), int(each.end[index])]
                    kind = f"{table.labels.types[each.kind[index]]} {_text_of(table, *places[-2:])}"
                shown.append(kind)
            first, end = min(places), max(places)
            actual, predicted = shown
            yield _Mistake(first, end, actual, predicted, float(before[end] - before[first]))

    def paired_metric(self, other: MeasuredRows[TaggedTable]) -> str:
        """F1 of entities, or the accuracy in a plain scheme."""
        both = (self.table.labels, other.table.labels)
        return "f1" if all(known.has_entities for known in both) else "accuracy"

    def row_sums(self) -> NDArray[np.float64]:
        """[rows, sums], the counts of words and entities."""
        return self.scored.row_sums()

    def metric_of_sums(self, metric: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """[draws], F1 or the accuracy."""
        return np.asarray(figures_of_sums(sums, metric == "f1")[metric])

    def all_held_out(self) -> HeldOut:
        """The words, the loss, the right words, and the entities of each row."""
        table, sums = self.table, self.row_sums()
        losses = np.concatenate([[0.0], np.cumsum(np.nan_to_num(self.losses))])
        known = np.concatenate([[0], np.cumsum(~np.isnan(self.losses))])
        columns = {
            "words": sums[:, 0],
            "right": sums[:, 1],
            "loss": np.diff(losses[table.starts]),
            "predictions": np.diff(known[table.starts]),
        }
        if table.labels.has_entities:
            parts = np.split(sums[:, 2:], 3, axis=1)
            for name, part in zip(("hits", "predicted", "actual"), parts, strict=True):
                columns[name] = part.sum(1)
        columns = {name: values.astype(np.float32) for name, values in columns.items()}
        return HeldOut(held_out.OF_TAGS, table.fingerprint, columns)


class TaggerEvaluation(RowEvaluation[TaggedTable]):
    """How taggers are measured on tagged words."""

    unit = "words"

    def loader(self, config: Config, model: Pretrained, console: Console) -> LoadPart[TaggedTable]:
        """Reads rows, encoded with the tags of a tagger."""
        known = tag.tag_set_of(model.config, from_file=config.data.label_names is not None)

        def load(found: Sequence[Source], name: str, warn: Say) -> TaggedTable:
            data = tag.resolve_columns_of(model, found, config.data, console.say, labelled=True)
            return load_known_tags(found, data, name, known, console.watch, warn)

        return load

    def open(self, model: Pretrained, device: torch.device, precision: str) -> Tagger:
        """The tagger with its weights."""
        return tag.open_tagger(model, device, precision)

    def measure(
        self,
        opened: Tagger,
        table: TaggedTable,
        processes: Processes | None,
        seed: int,
        watch: Watch,
    ) -> MeasuredTagger:
        """Every metric of a tagger."""
        encoded = opened.encoder.encode(table.texts, table.words)
        count = 1 if processes is None else processes.count
        with watch("measuring", len(encoded) // count) as advance:
            found = opened.tag_windows(encoded, processes, advance)
        check_finite_outputs(found.probabilities, "word")
        chances = special.log_softmax(found.logits.astype(np.float64), axis=1)
        losses = -chances[np.arange(len(table.targets)), table.targets]
        losses[encoded.sources != np.arange(len(losses))] = np.nan
        without = int((encoded.sources == NO_WORD).sum())
        figures = _all_figures(_scored(table, found.tags), losses, seed)
        if without:
            figures["words_without_token"] = without
        return MeasuredTagger("", table, figures, found.tags, losses)

    def baselines(self, train: TaggedTable | None, say: Say) -> Score | None:
        """The most frequent tag of each word in the training rows."""
        if train is None:
            return None
        fitted = FrequentTags(train)
        return lambda table: {"frequent_tag": _scored(table, fitted.predict(table)).figures()}

    def protocol(self, table: TaggedTable) -> dict[str, Any]:
        """The scheme of the tags."""
        return {"tag_scheme": table.labels.scheme}

    def judge(self, name: str, figures: Mapping[str, Any], advice: str) -> Iterator[str]:
        """Warnings if the tagger is no better than the most frequent tags."""
        return summary.of_tagger(name, figures, advice)

    def size(self, table: TaggedTable) -> int:
        """The number of words."""
        return len(table.targets)


class FrequentTags:
    """The baseline: the most frequent tag of each word in the training rows, and for other words
    that of all words."""

    def __init__(self, table: TaggedTable) -> None:
        found: dict[str, Counter[int]] = {}
        for word, tag_number in zip(_words_of(table), table.targets.tolist(), strict=True):
            found.setdefault(word, Counter())[tag_number] += 1
        # Of equally frequent tags, the first one in the order of the tags.
        self.usual = {word: min(each, key=lambda n: (-each[n], n)) for word, each in found.items()}
        self.other = int(np.bincount(table.targets).argmax())

    def predict(self, table: TaggedTable) -> NDArray[np.int64]:
        """The tag of each word."""
        tags = (self.usual.get(word, self.other) for word in _words_of(table))
        return np.fromiter(tags, np.int64, len(table.targets))


def tag_figures_from(
    windows: TokenWindows, table: TaggedTable
) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """The function that computes the metrics from the tags [words] that a model predicts, -1 for
    words that it was not asked for: of a subset of the windows, only its words count."""

    def figures(tags: NDArray[np.int64]) -> dict[str, float]:
        sources, numbers = windows.sources, np.arange(len(tags))
        is_whole = bool((tags >= 0)[sources == numbers].all())
        asked = np.where(sources == NO_WORD, is_whole, tags[np.maximum(sources, 0)] >= 0)
        completed = windows.completed(np.maximum(tags, 0), table.labels)
        chosen = np.flatnonzero(asked)
        row = np.searchsorted(table.starts, chosen, side="right")
        # Entities do not continue over words that are missing.
        is_first = (np.diff(row, prepend=-1) != 0) | (np.diff(chosen, prepend=-2) != 1)
        actual, predicted = table.targets[chosen], completed[chosen]
        return ScoredTags(table.labels, actual, predicted, np.flatnonzero(is_first)).figures()

    return figures


def _all_figures(scored: ScoredTags, losses: AnyArray, seed: int) -> dict[str, Any]:
    names, matrix = scored.confusion()
    errors = {"errors": scored.errors()} if scored.known.has_entities else {}
    return {
        "examples": len(scored.starts),
        "words": len(scored.actual),
        "loss": _mean_loss(losses),
        **scored.figures(),
        "intervals": scored.intervals(seed),
        "per_class": scored.per_class(),
        **errors,
        "confused": names,
        "confusion_matrix": matrix,
    }


def _mean_loss(losses: AnyArray) -> float:
    known = losses[~np.isnan(losses)]
    return float(known.mean()) if len(known) else 0.0


def _scored(table: TaggedTable, tags: NDArray[np.int64]) -> ScoredTags:
    return ScoredTags(table.labels, table.targets, tags, table.starts[:-1])


def _words_of(table: TaggedTable) -> Iterator[str]:
    for (text,), words in zip(table.texts, table.words, strict=True):
        for start, end in words.tolist():
            yield text[start:end]


class _Mistake(NamedTuple):
    """Words of one row with a wrong tag."""

    first: int
    end: int
    label: str
    predicted: str
    loss: float


def _text_of(table: TaggedTable, first: int, end: int) -> str:
    row = int(np.searchsorted(table.starts, first, side="right")) - 1
    words, begin = table.words[row], table.starts[row]
    return table.texts[row][0][words[first - begin, 0] : words[end - 1 - begin, 1]]


def _context(table: TaggedTable, row: int, mistake: _Mistake) -> str:
    """The words of a mistake in their text, marked and cut to a readable length."""
    text, words, begin = table.texts[row][0], table.words[row], table.starts[row]
    start, end = int(words[mistake.first - begin, 0]), int(words[mistake.end - 1 - begin, 1])
    left, right = text[:start], text[end:]
    before = f"…{left[-_CONTEXT:]}" if len(left) > _CONTEXT else left
    after = f"{right[:_CONTEXT]}…" if len(right) > _CONTEXT else right
    return " ".join(f"{before}«{text[start:end]}»{after}".split())
