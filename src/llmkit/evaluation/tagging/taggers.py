"""Evaluate taggers on tagged words: metrics, baseline, worst mistakes, and comparisons."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from llmkit import bootstrap
from llmkit.config.schema import Config
from llmkit.data.examples.tagged import NO_WORD, TaggedTable, TokenWindows
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import tagged_dataset
from llmkit.data.records.tags import OUTSIDE
from llmkit.data.records.words import unmarked_text
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.evaluation.tagging.entities import ScoredTags, figures_of_sums
from llmkit.inference.labels import tag
from llmkit.inference.labels.classify import AnyArray
from llmkit.inference.labels.tag import Tagger
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out
from llmkit.reporting.format import many
from llmkit.reporting.held_out import HeldOut

_WORST = 10
"""Mistakes of a finished model that are kept with its figures."""

_CONTEXT = 60
"""Maximum number of characters shown on each side of a mistake."""


class TaggedTables(NamedTuple):
    """The rows with the tags of one tagger."""

    test: TaggedTable
    train: TaggedTable | None
    """The training rows for the baseline, if given."""


@dataclass(frozen=True)
class MeasuredTagger:
    """The results of one tagger."""

    name: str
    table: TaggedTable
    tags: NDArray[np.int64]
    """[words], as predicted."""
    losses: NDArray[np.float64]
    """[words], the negative log-likelihood of each actual tag; NaN where no token predicts it."""
    figures: dict[str, Any]

    @property
    def scored(self) -> ScoredTags:
        """The actual beside the predicted tags."""
        return _scored(self.table, self.tags)


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


def measure_trained_tagger(
    tagger: Tagger, table: TaggedTable, fitted: FrequentTags, seed: int, watch: Watch
) -> tuple[dict[str, Any], HeldOut]:
    """Every metric of the tagger on the table, its worst mistakes, and under `baseline` the metrics
    of the baseline; and what became of each row."""
    measured = _measured(tagger, "", table, None, seed, watch)
    worst = list(_worst(measured, _WORST))
    beside = {"frequent_tag": _scored(table, fitted.predict(table)).figures()}
    return {**measured.figures, "worst": worst, "baseline": beside}, _held_out(measured)


def measure_taggers(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    watch: Watch,
    say: Say,
    warn: Say,
) -> list[MeasuredTagger]:
    """Evaluates taggers on `data.test_files`; checks rows and tags before loading weights.

    Tags are matched by name. The baseline is fitted to `data.train_files`; without them, there is
    none.
    """
    found = [tagged_tables(config, sources, model, watch, say, warn) for model in models]
    return [
        _evaluated(config, model, tables, processes, watch, warn)
        for model, tables in zip(models, found, strict=True)
    ]


def tagged_tables(
    config: Config, sources: Sources, model: Pretrained, watch: Watch, say: Say, warn: Say
) -> TaggedTables:
    """The rows, encoded with the tags of a tagger."""
    known = tag.tag_set_of(model.config, from_file=config.data.label_names is not None)

    def loaded(found: Sequence[Source], name: str, warn: Say) -> TaggedTable:
        data = tag.resolve_columns_of(model, found, config.data, say, labelled=True)
        return tagged_dataset.load_known_tags(found, data, name, known, watch, warn)

    learned = sources.of("data.train_files")
    test = loaded(sources.of("data.test_files"), "test", warn)
    return TaggedTables(test, loaded(learned, "train", say) if learned else None)


def tagger_result(config: Config, measured: Sequence[MeasuredTagger]) -> dict[str, Any]:
    """The metrics of one tagger, or of several with comparisons, and the worst mistakes."""
    found: dict[str, Any] = {}
    if len(measured) == 1:
        found |= measured[0].figures
    else:
        found["models"] = [each.figures for each in measured]
        found["comparisons"] = list(_comparisons(measured, config.seed))
    if config.evaluation.worst:
        found["worst"] = [m for each in measured for m in _worst(each, config.evaluation.worst)]
    return found


def measure_tagged_rows(
    measured: MeasuredTagger, seed: int, chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """The metrics of the tagger on the chosen rows alone."""
    words = np.repeat(chosen, np.diff(measured.table.starts))
    table, tags = measured.table.part(chosen), measured.tags[words]
    return {
        "examples": len(table),
        "loss": _mean_loss(measured.losses[words]),
        **_scored(table, tags).figures(),
    }


def tagger_samples(measured: Sequence[MeasuredTagger]) -> Iterator[dict[str, Any]]:
    """Every row with its actual and its predicted spans."""
    for each in measured:
        table, known = each.table, each.table.labels
        for row, (file, number) in enumerate(table.places):
            first, last = table.starts[row : row + 2]
            (text,), words = table.texts[row], table.words[row]
            shown = [
                [f"{span['label']} {span['text']}" for span in tag.tagged_spans(
                    known, text, words, tags[first:last], np.ones(last - first))]
                for tags in (table.targets, each.tags)
            ]  # fmt: skip
            yield {
                "model": each.name,
                "file": file,
                "row": number,
                "label": shown[0],
                "predicted": shown[1],
                "text": unmarked_text(text),
            }


def _evaluated(
    config: Config,
    model: Pretrained,
    tables: TaggedTables,
    processes: Processes,
    watch: Watch,
    warn: Say,
) -> MeasuredTagger:
    table = tables.test
    tagger = tag.open_tagger(model, processes.device, processes.precision)
    started = time.monotonic()
    measured = _measured(tagger, model.name, table, processes, config.seed, watch)
    if named := control_tokens(model.tokenizer).warning(table.texts, "row"):
        warn(named)
    seconds = time.monotonic() - started
    figures = {"model": model.name, **measured.figures}
    if tables.train is not None:
        frequent = FrequentTags(tables.train).predict(table)
        figures["baseline"] = {"frequent_tag": _scored(table, frequent).figures()}
    figures["protocol"] = {"tag_scheme": table.labels.scheme, "precision": processes.precision}
    figures |= {"seconds": seconds, "words_per_second": len(table.targets) / seconds}
    return MeasuredTagger(model.name, table, measured.tags, measured.losses, figures)


def _measured(
    tagger: Tagger,
    name: str,
    table: TaggedTable,
    processes: Processes | None,
    seed: int,
    watch: Watch,
) -> MeasuredTagger:
    encoded = tagger.encoder.encode(table.texts, table.words)
    count = 1 if processes is None else processes.count
    with watch("measuring", len(encoded) // count) as advance:
        found = tagger.tag_windows(encoded, processes, advance)
    if bad := int((~np.isfinite(found.probabilities)).sum()):
        raise DataError(
            f"the model's outputs are NaN or infinite for {many(bad, 'word')}",
            where="model.name_or_path",
            next="set evaluation.precision=fp32 if it is bf16; otherwise the weights are damaged",
        )
    chances = special.log_softmax(found.logits.astype(np.float64), axis=1)
    losses = -chances[np.arange(len(table.targets)), table.targets]
    losses[encoded.sources != np.arange(len(losses))] = np.nan
    without = int((encoded.sources == NO_WORD).sum())
    figures = _all_figures(_scored(table, found.tags), losses, seed)
    if without:
        figures["words_without_token"] = without
    return MeasuredTagger(name, table, found.tags, losses, figures)


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


def _worst(measured: MeasuredTagger, most: int) -> Iterator[dict[str, Any]]:
    """The mistakes with the highest loss: entities, or words in a plain scheme."""
    found = list(_mistakes(measured))
    found.sort(key=lambda mistake: -mistake.loss)
    for mistake in found[:most]:
        row = int(np.searchsorted(measured.table.starts, mistake.first, side="right")) - 1
        file, number = measured.table.places[row]
        yield {
            "file": file,
            "row": number,
            "label": mistake.label,
            "predicted": mistake.predicted,
            "loss": mistake.loss,
            "text": _context(measured.table, row, mistake),
        }


class _Mistake(NamedTuple):
    """Words of one row with a wrong tag."""

    first: int
    end: int
    label: str
    predicted: str
    loss: float


def _mistakes(measured: MeasuredTagger) -> Iterator[_Mistake]:
    table, scored, losses = measured.table, measured.scored, np.nan_to_num(measured.losses)
    before = np.concatenate([[0.0], np.cumsum(losses)])
    if not table.labels.has_entities:
        names = table.labels.names
        for word in np.flatnonzero(measured.tags != table.targets).tolist():
            actual, predicted = names[table.targets[word]], names[measured.tags[word]]
            yield _Mistake(word, word + 1, actual, predicted, float(losses[word]))
        return
    wrong = np.flatnonzero(~scored.exact).tolist()
    for pair in wrong:
        places, shown = [], []
        for index, each in zip((a[pair] for a in scored.alignment), scored.entities, strict=True):
            kind = OUTSIDE
            if index >= 0:
                places += [int(each.first[index]), int(each.end[index])]
                kind = f"{table.labels.types[each.kind[index]]} {_text_of(table, *places[-2:])}"
            shown.append(kind)
        first, end = min(places), max(places)
        actual, predicted = shown
        yield _Mistake(first, end, actual, predicted, float(before[end] - before[first]))


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


def _held_out(measured: MeasuredTagger) -> HeldOut:
    """The words, the loss, the right words, and the entities of each row."""
    table, sums = measured.table, measured.scored.row_sums()
    losses = np.concatenate([[0.0], np.cumsum(np.nan_to_num(measured.losses))])
    known = np.concatenate([[0], np.cumsum(~np.isnan(measured.losses))])
    columns = {
        "words": sums[:, 0],
        "right": sums[:, 1],
        "loss": np.diff(losses[table.starts]),
        "predictions": np.diff(known[table.starts]).astype(np.float64),
    }
    if table.labels.has_entities:
        for name, part in zip(("hits", "predicted", "actual"), np.split(sums[:, 2:], 3, axis=1),
                              strict=True):  # fmt: skip
            columns[name] = part.sum(1)
    kept = np.arange(0, len(table), -(-len(table) // held_out.MOST_ROWS))
    chosen = {name: values[kept].astype(np.float32) for name, values in columns.items()}
    return HeldOut(held_out.OF_TAGS, table.fingerprint, {"unit": kept, **chosen})


def _comparisons(measured: Sequence[MeasuredTagger], seed: int) -> Iterator[dict[str, Any]]:
    """Pairwise differences of the main metric with paired confidence intervals."""
    for one, other in ((a, b) for i, a in enumerate(measured) for b in measured[i + 1 :]):
        has_entities = one.table.labels.has_entities and other.table.labels.has_entities
        metric = "f1" if has_entities else "accuracy"
        sums = [each.scored.row_sums() for each in (one, other)]
        drawn = bootstrap.resample(np.hstack(sums), seed)
        width = sums[0].shape[1]
        values = [figures_of_sums(part, has_entities)[metric]
                  for part in (drawn[:, :width], drawn[:, width:])]  # fmt: skip
        low, high = bootstrap.interval(values[0] - values[1])
        yield {
            "model": one.name,
            "other": other.name,
            f"{metric}_difference": one.figures[metric] - other.figures[metric],
            "low": low,
            "high": high,
            "better": (one.name if low > 0 else other.name) if low * high > 0 else None,
        }
