"""What a finished classifier says of texts: each the same in whatever company it comes.

Texts of like length go through the model together, so that hardly anything is padded. How far a
text is padded depends on its own length alone; in fp32 every batch of that length has the same
shape too, since the last bits of a matrix product depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config.schema import DataConfig
from llmkit.data.examples import Encoded, Encoder
from llmkit.data.labelled import Row
from llmkit.data.labels import MULTI, REGRESSION, SINGLE
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.models import build, load
from llmkit.models.classifier import (
    Head,
    head_of,
    is_classifier,
    keep_digits,
    longest_text,
    remembered_columns,
    set_padding,
)
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.predictions import DIGITS, Prediction

THRESHOLD = 0.5
"""Probability from which a label of a multi-label problem is given."""

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens of one batch: enough to keep the device busy."""

STEPS_PER_OCTAVE = 16
"""Lengths between one power of two and the next that texts are padded to."""

WINDOW_ROWS, WINDOW_CHARACTERS = 8192, 8 << 20
"""Rows that are sorted by length together: as many, or as long in all."""

ALL = "*"

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Classifier:
    """A finished classifier, on its device."""

    model: PreTrainedModel
    encoder: Encoder
    head: Head
    precision: str

    @torch.no_grad()
    def outputs(
        self,
        texts: Sequence[tuple[str, ...]],
        advance: Callable[[int], None] = lambda n_texts: None,
    ) -> NDArray[np.float32]:
        """The logits [texts, labels], or the number of each text in a regression."""
        encoded = self.encoder.encode(texts)
        logits = np.zeros((len(texts), len(self.head.names)), dtype=np.float32)
        device = self.model.device
        low = self.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            for rows, length in self._batches(encoded):
                batch = _padded(encoded, rows, length)
                found = self.model(**{name: value.to(device) for name, value in batch.items()})
                known = rows >= 0
                logits[rows[known]] = found.logits.float().cpu().numpy()[known]
                advance(int(known.sum()))
        return logits

    def _batches(self, encoded: Encoded) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Rows that go through the model together, and the length that all are padded to; row -1
        fills up."""
        lengths = padded_lengths(encoded.lengths)
        budget = BATCH_TOKENS.get(self.model.device.type, 1024)
        for length in np.unique(lengths).tolist():
            rows, size = np.flatnonzero(lengths == length), max(1, budget // length)
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                if self.precision == "fp32":
                    batch = np.pad(batch, (0, size - len(batch)), constant_values=-1)
                yield batch, length


def check_classifier(pretrained: Pretrained) -> None:
    """Raises DataError for a model that is no classifier."""
    if not is_classifier(pretrained.config):
        kind = (pretrained.config.architectures or ["model without a head"])[0]
        raise DataError(
            f"the model is a {kind}, and no classifier",
            where=f"model.name_or_path={pretrained.name}",
            next="give the run directory of `llmkit finetune`, or another sequence classifier",
        )


def open_classifier(pretrained: Pretrained, device: torch.device, precision: str) -> Classifier:
    """The classifier with its weights, which reads texts as its own tokenizer does."""
    check_classifier(pretrained)
    config, tokenizer = pretrained.config, pretrained.own_tokenizer
    set_padding(tokenizer)
    model = load.load_model(pretrained, build.CLASSIFIER).eval().to(device)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    encoder, head = Encoder(tokenizer, longest_text(config, tokenizer)), head_of(config)
    if head.problem_type == REGRESSION:
        keep_digits(model)
    return Classifier(model, encoder, head, precision)


def shared_outputs(
    classifier: Classifier,
    texts: Sequence[tuple[str, ...]],
    processes: Processes | None,
    advance: Callable[[int], None] = lambda n_texts: None,
) -> NDArray[np.float64]:
    """What the classifier says of all texts [texts, labels]; several processes share them."""
    if processes is None:
        return classifier.outputs(texts, advance).astype(np.float64)
    share = len(texts) / processes.count
    first, last = round(processes.rank * share), round((processes.rank + 1) * share)
    whole = torch.zeros(len(texts), len(classifier.head.names), dtype=torch.float64)
    if first < last:
        whole[first:last] = torch.from_numpy(classifier.outputs(texts[first:last], advance))
    found: NDArray[np.float64] = processes.sum(whole.to(processes.device)).cpu().numpy()
    return found


def probabilities(kind: str, outputs: Numbers) -> Numbers:
    """The probability of each label from logits [n, classes]: softmax, or for multi-label a sigmoid
    each; the numbers of a regression stay as they are. In float64."""
    outputs = outputs.astype(np.float64)
    each = {SINGLE: lambda logits: special.softmax(logits, axis=1), MULTI: special.expit}
    return each[kind](outputs) if kind in each else outputs


def classify_rows(
    classifier: Classifier,
    windows: Iterable[Sequence[Row]],
    columns: Sequence[str],
    processes: Processes | None = None,
) -> Iterator[list[Prediction]]:
    """Predictions for the rows in their order, a window at a time; `columns` are repeated.

    Several processes share each window, and each gets all predictions. Raises DataError for columns
    that a row does not have.
    """
    for window in windows:
        outputs = shared_outputs(classifier, [row.texts for row in window], processes)
        chances = probabilities(classifier.head.problem_type, outputs)
        yield [
            prediction_of(classifier.head, row, values, columns)
            for row, values in zip(window, chances, strict=True)
        ]


def prediction_of(head: Head, row: Row, values: Numbers, columns: Sequence[str]) -> Prediction:
    """What the head's values for a row say."""
    rounded = [round(value, DIGITS) for value in values.tolist()]
    repeated = _repeated(row, columns)
    kept = {**row.named, **repeated}
    given = (repeated, {name: kept[name] for name in row.order if name in kept})
    if head.problem_type == REGRESSION:
        return Prediction(row.texts, rounded[0], {}, *given)
    chances = dict(zip(head.names, rounded, strict=True))
    if head.problem_type == MULTI:
        likely = zip(head.names, values, strict=True)
        label = [name for name, value in likely if value >= THRESHOLD]
        return Prediction(row.texts, label, chances, *given)
    return Prediction(row.texts, head.names[int(np.argmax(values))], chances, *given)


def row_windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in windows of bounded size, so that any number of them takes bounded memory."""
    window: list[Row] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += sum(map(len, row.texts)) + len(str(row.extra))
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def skip_rows(windows: Iterable[list[Row]], rows: int) -> Iterator[list[Row]]:
    """What follows so many rows, in windows."""
    for window in windows:
        if kept := window[rows:]:
            yield kept
        rows = max(0, rows - len(window))


def check_first_row(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Row]:
    """The same rows, after a look at the first: whether it can be read, and has the columns."""
    first = next(rows, None)
    if first is None:
        return iter(())
    _repeated(first, columns)
    return chain([first], rows)


def _repeated(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    if ALL in columns:
        return row.extra
    for name in columns:
        if name not in row.extra:
            raise DataError(
                f"there is no column {name!r} besides the text",
                where=f"predict.columns; {row.path} row {row.number}",
                next=f"write some of {', '.join(row.extra) or 'none: there is no other column'}",
            )
    return {name: row.extra[name] for name in columns}


def resolve_columns(
    data: DataConfig,
    config: PretrainedConfig,
    settle: Callable[[DataConfig], DataConfig],
    is_labelled: bool = False,
) -> DataConfig:
    """The data section with its columns: as given, as the classifier was trained on, or as found.

    `settle` finds them in the rows, and raises DataError where a column is missing or unclear; so
    does this for single texts where the model reads pairs, and the reverse.
    """
    keys = ["text_column", *(["label_column"] if is_labelled else [])]
    noted = {key: remembered_columns(config, key) for key in keys if getattr(data, key) is None}
    trained = {key: each if len(each) > 1 else each[0] for key, each in noted.items() if each}
    found = None
    for some in [trained, *({key: column} for key, column in trained.items())]:
        with suppress(DataError):  # a file of its own, with other columns
            found = found or settle(data.changed(**some))
    found = found or settle(data)
    where = ", ".join(data.test_files) or "stdin"
    check_number_of_texts(config, found.text_column, where)
    return found


def check_number_of_texts(config: PretrainedConfig, text_column: Any, where: str) -> None:
    """Raises DataError where the model was trained on pairs of texts and a row has one, or the
    reverse."""
    trained = remembered_columns(config)
    given = text_column if isinstance(text_column, tuple) else (text_column,)
    if not trained or (len(trained) == 2) == (len(given) == 2):
        return
    names = " and ".join(map(repr, trained))
    pairs = len(trained) == 2
    raise DataError(
        f"the model was trained on pairs of texts, from the columns {names}; here is one text"
        if pairs
        else f"the model was trained on one text, from {names}; here are two, "
        f"{' and '.join(map(repr, given))}",
        where=where,
        next="give rows with both columns (other names: data.text_column=[FIRST, SECOND])"
        if pairs
        else "name the one column of the text: data.text_column=NAME",
    )


def padded_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lengths that texts are padded to: up by a sixteenth at most, so that there are few."""
    octaves = np.floor(np.log2(np.maximum(1, lengths))).astype(np.int64)
    step = np.maximum(1, 2**octaves // STEPS_PER_OCTAVE)
    return np.maximum(1, -(-lengths // step) * step)


def _padded(encoded: Encoded, rows: NDArray[np.int64], length: int) -> dict[str, torch.Tensor]:
    batch = encoded.batch(rows)
    missing = length - batch["input_ids"].shape[1]
    fills = {"input_ids": encoded.pad_id}
    return {
        name: functional.pad(value, (0, missing), value=fills.get(name, 0))
        for name, value in batch.items()
    }
