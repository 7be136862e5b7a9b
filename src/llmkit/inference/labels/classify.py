"""Classify texts with a trained model; a prediction does not depend on the rest of its batch.

Texts of similar length are batched together, so that there is little padding. The padded length of
a text depends only on its own length; in fp32 all batches of that length also have the same shape,
because the last bits of a matrix product depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from transformers import PretrainedConfig

from llmkit.config.schema import DataConfig
from llmkit.data.examples.encoded import Encoder
from llmkit.data.records.labelled import Row
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.inference.labels.batched import (
    BatchedModel,
    load_head,
    refuse_head,
    share_of,
    summed,
)
from llmkit.models import build
from llmkit.models.classifier import (
    ClassifierHead,
    head_of,
    is_classifier,
    longest_text,
    remembered_columns,
    set_padding,
    to_number_head,
)
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.format import many
from llmkit.reporting.predictions import DIGITS, Prediction

THRESHOLD = 0.5
"""Minimum probability of a predicted label in a multi-label problem."""

WINDOW_ROWS, WINDOW_CHARACTERS = 8192, 8 << 20
"""Maximum number of rows, and of characters in all, that are sorted by length together."""

ALL = "*"

AnyArray = NDArray[Any]
CopiedColumns = Mapping[str, Any]


class InputRow(Protocol):
    """What predictions need of a row."""

    @property
    def number(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def extra(self) -> CopiedColumns:
        """The columns besides the texts."""

    @property
    def named(self) -> CopiedColumns:
        """The columns of the texts."""

    @property
    def order(self) -> tuple[str, ...]:
        """All columns, in the order of the table."""


R = TypeVar("R", bound=InputRow)


@dataclass(frozen=True)
class Classifier(BatchedModel):
    """A trained classifier on its device."""

    encoder: Encoder
    head: ClassifierHead

    def outputs(
        self,
        texts: Sequence[tuple[str, ...]],
        advance: Callable[[int], None] = lambda n_texts: None,
    ) -> NDArray[np.float32]:
        """The logits [texts, labels], or for regression the numbers [texts, 1]."""
        encoded = self.encoder.encode(texts)
        logits = np.zeros((len(texts), len(self.head.names)), dtype=np.float32)
        for rows, batch in self.batches(encoded, advance=advance):
            known = rows >= 0
            logits[rows[known]] = self.of_batch(batch)[known]
        return logits


def check_classifier(pretrained: Pretrained) -> None:
    """Raises DataError for a model that is not a classifier."""
    if not is_classifier(pretrained.config):
        advice = "give the run directory of `llmkit finetune`, or another sequence classifier"
        raise refuse_head(pretrained, "not a classifier", advice)


def open_classifier(pretrained: Pretrained, device: torch.device, precision: str) -> Classifier:
    """Loads a classifier with its weights and its own tokenizer."""
    check_classifier(pretrained)
    config, tokenizer = pretrained.config, pretrained.own_tokenizer
    set_padding(tokenizer)
    model = load_head(pretrained, build.CLASSIFIER_MODEL, device)
    encoder, head = Encoder(tokenizer, longest_text(config, tokenizer)), head_of(config)
    if head.problem_type == REGRESSION:
        to_number_head(model)
    return Classifier(model, encoder, precision, head)


def shared_outputs(
    classifier: Classifier,
    texts: Sequence[tuple[str, ...]],
    processes: Processes | None,
    advance: Callable[[int], None] = lambda n_texts: None,
) -> NDArray[np.float64]:
    """The outputs for all texts [texts, labels]; several processes share the work."""
    if processes is None:
        return classifier.outputs(texts, advance).astype(np.float64)
    share = len(texts) / processes.count
    first, last = round(processes.rank * share), round((processes.rank + 1) * share)
    whole = np.zeros((len(texts), len(classifier.head.names)))
    if first < last:
        whole[first:last] = classifier.outputs(texts[first:last], advance)
    return summed(whole, processes)


def truncated_rows(encoder: Encoder, processes: Processes) -> str | None:
    """A sentence with the number of rows so far that were cut, of all processes, all of which must
    call this; None if there are none."""
    cut = int(processes.sum(torch.tensor([encoder.truncated], device=processes.device)).item())
    side, most = "last" if encoder.side == "left" else "first", f"{encoder.max_length:,}"
    read = f"only the {side} {most} of each were read"
    return f"{many(cut, 'row')} longer than {most} tokens: {read}" if cut else None


def probabilities(kind: str, outputs: AnyArray) -> AnyArray:
    """The probability of each label from logits [n, classes]: softmax, or for multi-label a sigmoid
    each; regression outputs are unchanged. In float64."""
    outputs = outputs.astype(np.float64)
    each = {SINGLE: lambda logits: special.softmax(logits, axis=1), MULTI: special.expit}
    return each[kind](outputs) if kind in each else outputs


def classify_rows(
    classifier: Classifier,
    windows: Iterable[Sequence[Row]],
    columns: Sequence[str],
    processes: Processes | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> Iterator[list[Prediction]]:
    """Predictions for the rows in order, a window at a time, with `columns` copied from the rows.

    Several processes share each window, and each gets all predictions; `advance` is called with
    each share of a window that is done. Raises DataError for a column that a row does not have.
    """
    for window in windows:
        texts, part = [row.texts for row in window], share_of(advance, len(window), processes)
        outputs = shared_outputs(classifier, texts, processes, part)
        chances = probabilities(classifier.head.problem_type, outputs)
        yield [
            prediction_of(classifier.head, row, values, columns)
            for row, values in zip(window, chances, strict=True)
        ]


def prediction_of(
    head: ClassifierHead, row: Row, values: AnyArray, columns: Sequence[str]
) -> Prediction:
    """The prediction for a row from the head's values: None if they are not all finite."""
    is_finite = bool(np.isfinite(values).all())
    rounded = [round(value, DIGITS) if is_finite else None for value in values.tolist()]
    given = repeated_columns(row, columns)
    if head.problem_type == REGRESSION:
        return Prediction(row.texts, rounded[0], {}, *given)
    chances = dict(zip(head.names, rounded, strict=True))
    if not is_finite:
        return Prediction(row.texts, None, chances, *given)
    if head.problem_type == MULTI:
        likely = zip(head.names, values, strict=True)
        label = [name for name, value in likely if value >= THRESHOLD]
        return Prediction(row.texts, label, chances, *given)
    return Prediction(row.texts, head.names[int(np.argmax(values))], chances, *given)


def row_windows(rows: Iterable[R]) -> Iterator[list[R]]:
    """The rows in windows of bounded size, so that memory is bounded for any number of rows."""
    window: list[R] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += sum(map(len, row.texts)) + len(str(row.extra))
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def skip_rows(windows: Iterable[list[R]], rows: int) -> Iterator[list[R]]:
    """The windows without the first `rows` rows."""
    for window in windows:
        if kept := window[rows:]:
            yield kept
        rows = max(0, rows - len(window))


def check_first_row(rows: Iterator[R], columns: Sequence[str]) -> Iterator[R]:
    """The same rows, after checking that the first can be read and has the columns."""
    first = next(rows, None)
    if first is None:
        return iter(())
    _repeated(first, columns)
    return chain([first], rows)


def repeated_columns(row: InputRow, columns: Sequence[str]) -> tuple[CopiedColumns, CopiedColumns]:
    """The columns of a row that are copied into its prediction, and the same with those of its
    texts, in the order of the table; raises DataError for a column that the row does not have."""
    repeated = _repeated(row, columns)
    kept = {**row.named, **repeated}
    return repeated, {name: kept[name] for name in row.order if name in kept}


def _repeated(row: InputRow, columns: Sequence[str]) -> CopiedColumns:
    if ALL in columns:
        return row.extra
    for name in columns:
        if name not in row.extra:
            raise DataError(
                f"there is no column {name!r} besides the text",
                where=f"predict.columns; {row.path} row {row.number}",
                next=f"choose from {', '.join(row.extra) or 'none: there is no other column'}",
            )
    return {name: row.extra[name] for name in columns}


def resolve_columns(
    data: DataConfig,
    config: PretrainedConfig,
    find_columns: Callable[[DataConfig], DataConfig],
    is_labelled: bool = False,
) -> DataConfig:
    """The data section with its columns: as given, as in training, or as found in the rows.

    `find_columns` finds them in the rows, and raises DataError if a column is missing or ambiguous.
    Also raises DataError for single texts if the model was trained on pairs, and vice versa.
    """
    keys = ["text_column", *(["label_column"] if is_labelled else [])]
    noted = {key: remembered_columns(config, key) for key in keys if getattr(data, key) is None}
    trained = {key: each if len(each) > 1 else each[0] for key, each in noted.items() if each}
    found = None
    for some in [trained, *({key: column} for key, column in trained.items())]:
        with suppress(DataError):  # the file has other columns than the training data
            found = found or find_columns(data.changed(**some))
    found = found or find_columns(data)
    where = ", ".join(data.test_files) or "the input"
    check_number_of_texts(config, found.text_column, where)
    return found


def check_number_of_texts(config: PretrainedConfig, text_column: Any, where: str) -> None:
    """Raises DataError if the model was trained on pairs of texts and a row has one text, or vice
    versa."""
    trained = remembered_columns(config)
    given = text_column if isinstance(text_column, tuple) else (text_column,)
    if not trained or (len(trained) == 2) == (len(given) == 2):
        return
    names = " and ".join(map(repr, trained))
    pairs = len(trained) == 2
    raise DataError(
        f"the model was trained on pairs of texts, from columns {names}; these rows have one text"
        if pairs
        else f"the model was trained on one text, from {names}; these rows have two, "
        f"{' and '.join(map(repr, given))}",
        where=where,
        next="give rows with both columns (other names: data.text_column=[FIRST, SECOND])"
        if pairs
        else "name the single text column: data.text_column=NAME",
    )
