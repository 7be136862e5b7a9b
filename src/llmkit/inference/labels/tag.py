"""Tag words with a trained model; a prediction does not depend on the other rows of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from transformers import PretrainedConfig

from llmkit.config.schema import DataConfig
from llmkit.data.examples.tagged import NO_WORD, TokenWindows, WindowEncoder
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.data.records.tagging.tagged import TaggedRow, resolve_tagged_columns
from llmkit.data.records.tagging.tags import PLAIN_TAGS, TagSet, scheme_of
from llmkit.data.records.tagging.words import WordSpans
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.inference.labels.batched import (
    BatchedModel,
    load_head,
    refuse_head,
    share_of,
    summed,
)
from llmkit.inference.labels.classify import AnyArray, repeated_columns
from llmkit.models import build, classifier
from llmkit.models.classifier import head_of, is_tagger, longest_text, set_padding
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say
from llmkit.reporting.predictions import DIGITS, TaggedPrediction

BY_LAST, SCHEME = "by_last_token", "tag_scheme"
"""What the config.json of a tagger records besides columns: whether the last token of a word
predicts its tag, and the scheme of the tags."""


class WordTags(NamedTuple):
    """The tags that a model predicts for the words of texts, one after the other."""

    logits: NDArray[np.float32]
    """[words, tags]; 0 for a word that no token predicts."""
    tags: NDArray[np.int64]
    """[words], of every word."""
    probabilities: NDArray[np.float64]
    """[words], of each tag; 1 for a word that the tokenizer drops, NaN if the model's outputs are
    NaN or infinite."""


@dataclass(frozen=True)
class Tagger(BatchedModel):
    """A trained tagger on its device."""

    encoder: WindowEncoder
    tags: TagSet

    def tag_windows(
        self,
        encoded: TokenWindows,
        processes: Processes | None = None,
        advance: Callable[[int], None] = lambda n_windows: None,
    ) -> WordTags:
        """The tags of the words of encoded texts; several processes share the windows, and each
        gets all tags. `advance` is called with the numbers of windows that this process has
        computed."""
        logits = np.zeros((len(encoded.sources), len(self.tags)), dtype=np.float32)
        for _, batch in self.batches(encoded, processes, advance, {"words": NO_WORD}):
            words = batch.pop("words").numpy()
            owned = words != NO_WORD
            logits[words[owned]] = self.of_batch(batch)[owned]
        return self.word_tags(encoded, summed(logits, processes).astype(np.float32))

    def word_tags(self, encoded: TokenWindows, logits: NDArray[np.float32]) -> WordTags:
        """The tags of the words of encoded texts, from the logits [words, tags] of those that a
        token predicts."""
        found = special.softmax(logits.astype(np.float64), axis=1)
        known = encoded.sources == np.arange(len(found))
        tags = np.zeros(len(found), dtype=np.int64)
        tags[known] = found[known].argmax(1)
        chances = np.ones(len(found))
        sources = encoded.sources[encoded.sources != NO_WORD]
        chances[encoded.sources != NO_WORD] = found.max(1, initial=0.0)[sources]
        return WordTags(logits, encoded.completed(tags, self.tags), chances)


def check_tagger(pretrained: Pretrained) -> None:
    """Raises DataError for a model that is not a tagger."""
    if not is_tagger(pretrained.config):
        run = "give a run of `llmkit finetune train.objective=token_classification`"
        raise refuse_head(pretrained, "not a tagger", f"{run}, or another token classifier")


def tag_set_of(config: PretrainedConfig, from_file: bool = False) -> TagSet:
    """The tags of a trained tagger; a scheme that its config does not record is detected."""
    names = head_of(config).names
    scheme = classifier.remembered(config, SCHEME) or scheme_of(names)
    return TagSet(str(scheme), names, from_file)


def resolve_columns_of(
    pretrained: Pretrained, found: Sequence[Source], data: DataConfig, say: Say, labelled: bool
) -> DataConfig:
    """The data section with its columns: as given, as in training, or as found in the rows, and
    with the scheme of the tagger."""
    config = pretrained.config
    return resolve_tagged_columns(
        found, data, say, labelled, lambda table: with_remembered_columns(data, config, table)
    )


def with_remembered_columns(data: DataConfig, config: PretrainedConfig, table: Table) -> DataConfig:
    """The data section with those columns of the training of a tagger that it does not name and
    that the table has, by name or if it has no names by number."""
    columns = {}
    for key in ("text_column", "label_column", "mark_column"):
        found = classifier.remembered(config, key)
        column = found[0] if isinstance(found, list) and found else found
        known = table.columns.names or range(len(table.columns))
        if getattr(data, key) is None and column in known:
            columns[key] = column
    return data.changed(**columns, tag_scheme=tag_set_of(config).scheme)


def window_encoder(pretrained: Pretrained) -> WindowEncoder:
    """The encoder of a trained tagger, with its own tokenizer."""
    config, tokenizer = pretrained.config, pretrained.own_tokenizer
    set_padding(tokenizer)
    length = longest_text(config, tokenizer, build.TAGGER_MODEL)
    return WindowEncoder(tokenizer, length, bool(classifier.remembered(config, BY_LAST)))


def open_tagger(pretrained: Pretrained, device: torch.device, precision: str) -> Tagger:
    """Loads a tagger with its weights and its own tokenizer."""
    check_tagger(pretrained)
    encoder = window_encoder(pretrained)
    model = load_head(pretrained, build.TAGGER_MODEL, device)
    return Tagger(model, encoder, precision, tag_set_of(pretrained.config))


def tag_rows(
    tagger: Tagger,
    windows: Iterable[Sequence[TaggedRow]],
    columns: Sequence[str],
    processes: Processes | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> Iterator[list[TaggedPrediction]]:
    """Predictions for the rows in order, a window of rows at a time, with `columns` copied from the
    rows.

    Several processes share each window, and each gets all predictions; `advance` is called with
    each share of a window that is done. Raises DataError for a column that a row does not have, and
    for a row whose marked word is not clear.
    """
    for window in windows:
        read = [_readable(row).read() for row in window]
        words = [each for _, each in read]
        encoded = tagger.encoder.encode([(text,) for text, _ in read], words)
        part = share_of(advance, len(encoded), processes)
        found = tagger.tag_windows(encoded, processes, part)
        starts = np.cumsum([0, *map(len, words)])
        yield [
            _prediction(tagger.tags, row, found, int(starts[n]), columns)
            for n, row in enumerate(window)
        ]


def _prediction(
    known: TagSet, row: TaggedRow, found: WordTags, first: int, columns: Sequence[str]
) -> TaggedPrediction:
    last = first + len(row.words)
    tags, chances = found.tags[first:last], found.probabilities[first:last]
    given = repeated_columns(row, columns)
    if not np.isfinite(chances).all():
        return TaggedPrediction(row.text, None, None, row.tokens, None, *given)
    spans = list(tagged_spans(known, row.text, row.words, tags, chances))
    least = round(float(chances.min(initial=1.0)), DIGITS)
    names = tuple(known.names[tag] for tag in tags.tolist()) if row.tokens is not None else None
    return TaggedPrediction(row.text, spans, least, row.tokens, names, *given)


def _readable(row: TaggedRow) -> TaggedRow:
    if row.problem is not None:
        raise DataError(
            f"data row {row.number}: {row.problem.reason}",
            where=row.problem.where,
            next="mark one word, or words side by side, in the column of data.mark_column",
        )
    return row


def tagged_spans(
    known: TagSet, text: str, words: WordSpans, tags: NDArray[np.int64], chances: AnyArray
) -> Iterator[dict[str, Any]]:
    """The spans that the tags of a text spell: entities, or each word in a plain scheme. The
    probability of a span is the product of those of its words' tags."""
    if known.scheme == PLAIN_TAGS:
        edges = [(word, word + 1, int(tag)) for word, tag in enumerate(tags.tolist())]
    else:
        found = known.entities(tags, np.zeros(1, dtype=np.int64))
        edges = list(zip(found.first.tolist(), found.end.tolist(), found.kind.tolist(),
                         strict=True))  # fmt: skip
    for first, end, kind in edges:
        start, stop = int(words[first, 0]), int(words[end - 1, 1])
        yield {
            "start": start,
            "end": stop,
            "label": known.types[kind],
            "text": text[start:stop],
            "probability": round(float(np.prod(chances[first:end])), DIGITS),
        }
