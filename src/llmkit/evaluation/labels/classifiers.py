"""Evaluate classifiers on labelled rows: their metrics, baselines, and worst mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.encoded import LabelledTable
from llmkit.data.readers import roles
from llmkit.data.readers.columns import LABEL_NAMES
from llmkit.data.readers.files import Source
from llmkit.data.records import dataset, labelled, labels
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.evaluation.baselines import Baseline, Majority, fit_baselines, score_baselines
from llmkit.evaluation.labels.label_metrics import score_labels
from llmkit.evaluation.labels.measuring import (
    LoadPart,
    MeasuredRows,
    RowEvaluation,
    Score,
    check_finite_outputs,
    without_bulky,
)
from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import THRESHOLD, AnyArray, Classifier, probabilities
from llmkit.models.classifier import head_of, remembered_columns
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out, summary
from llmkit.reporting.console import Console
from llmkit.reporting.held_out import HeldOut

_FIRST_ROWS = 1000
"""Rows that are searched for labels that the model knows."""

_MAX_SHOWN = 200
"""Maximum number of characters shown of a misclassified text."""


@dataclass(frozen=True)
class MeasuredClassifier(MeasuredRows[LabelledTable]):
    """The results of one classifier."""

    outputs: AnyArray
    """[rows, labels] logits, or [rows, 1] numbers."""

    def figures_of(self, chosen: NDArray[np.bool_], seed: int) -> dict[str, Any]:
        """The metrics on the chosen rows alone."""
        table, known = self.table.part(chosen), self.table.labels
        outputs = self.outputs[chosen]
        found = score_labels(known.kind, outputs, encoded_targets(table), known.names, seed)
        return without_bulky(found)

    def samples(self) -> Iterator[dict[str, Any]]:
        """Every row with its label, its prediction, and the probability of each label."""
        names = self.table.labels.names
        for row, values in enumerate(self._probabilities.tolist()):
            text = _text(self.table, row)
            chances = dict(zip(names, values, strict=True))
            yield {**self._row(row), "text": text, "probabilities": chances}

    def worst(self, most: int) -> Iterator[dict[str, Any]]:
        """The mistakes with the highest loss."""
        losses = np.where(self._is_correct, -np.inf, self._losses)
        for row in np.argsort(-losses, kind="stable")[:most].tolist():
            if losses[row] > -np.inf:
                text = " ".join(_text(self.table, row).split())
                cut = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"
                yield {**self._row(row), "loss": float(losses[row]), "text": cut}

    def paired_metric(self, other: MeasuredRows[LabelledTable]) -> str | None:
        """The accuracy; nothing for a regression."""
        return None if self.table.labels.kind == REGRESSION else "accuracy"

    def row_sums(self) -> NDArray[np.float64]:
        """[rows, 2], whether each is right, and 1."""
        right = self._is_correct
        return np.column_stack([right, np.ones(len(right))]).astype(np.float64)

    def all_held_out(self) -> HeldOut:
        """The label, the prediction and the loss of each row."""
        table, outputs = self.table, self.outputs
        kind, names = table.labels.kind, tuple(table.labels.names)
        columns: dict[str, AnyArray] = {"label": table.targets, "predicted": outputs[:, 0]}
        if kind != REGRESSION:
            predicted = self._is_likely if kind == MULTI else outputs.argmax(1)
            columns |= {"predicted": predicted, "loss": self._losses.astype(np.float32)}
        named = {SINGLE: held_out.OF_LABELS, MULTI: held_out.OF_LABEL_SETS}
        return HeldOut(named.get(kind, held_out.OF_NUMBERS), table.fingerprint, columns, names)

    @cached_property
    def _probabilities(self) -> AnyArray:
        return probabilities(self.table.labels.kind, self.outputs)

    @property
    def _is_likely(self) -> AnyArray:
        return np.asarray(self._probabilities >= THRESHOLD)

    @property
    def _is_correct(self) -> AnyArray:
        """[rows], whether the prediction of a row is exactly right; always False for regression."""
        table = self.table
        if table.labels.kind == SINGLE:
            return np.asarray(self.outputs.argmax(1) == table.targets)
        if table.labels.kind == MULTI:
            return np.asarray((self._is_likely == table.targets.astype(bool)).all(1))
        return np.zeros(len(table), dtype=bool)

    @property
    def _losses(self) -> AnyArray:
        """[rows], the loss of each row: cross entropy, or the squared error."""
        table, outputs = self.table, self.outputs
        if table.labels.kind == REGRESSION:
            return np.asarray((outputs[:, 0] - table.targets) ** 2)
        if table.labels.kind == MULTI:
            return np.asarray((np.logaddexp(0, outputs) - outputs * table.targets).mean(1))
        tiny = np.finfo(np.float64).tiny
        chosen = self._probabilities[np.arange(len(table)), table.targets]
        return np.asarray(-np.log(np.maximum(chosen, tiny)))

    def _row(self, row: int) -> dict[str, Any]:
        """The place of a row, its label and its prediction."""
        table = self.table
        file, number = table.places[row]
        label = _names(table, table.targets[row])
        predicted = _predicted(table, self._probabilities[row])
        return {"file": file, "row": number, "label": label, "predicted": predicted}


class ClassifierEvaluation(RowEvaluation[LabelledTable]):
    """How classifiers are measured on labelled rows."""

    unit = "examples"

    def loader(
        self, config: Config, model: Pretrained, console: Console
    ) -> LoadPart[LabelledTable]:
        """Reads rows, encoded with the labels of a classifier; those of training by the columns of
        those of the test."""
        head, data = head_of(model.config), config.data
        known = Labels(head.problem_type, head.names, data.label_names is not None)

        def load(found: Sequence[Source], name: str, warn: Say) -> LabelledTable:
            nonlocal data
            if name == "test":
                data = _data(found, config, model, known, console.say)
            else:
                data = roles.resolve_label_columns(found, data, console.say)
            return dataset.load_known(found, data, name, known, console.watch, warn)

        return load

    def open(self, model: Pretrained, device: torch.device, precision: str) -> Classifier:
        """The classifier with its weights."""
        return classify.open_classifier(model, device, precision)

    def measure(
        self,
        opened: Classifier,
        table: LabelledTable,
        processes: Processes | None,
        seed: int,
        watch: Watch,
    ) -> MeasuredClassifier:
        """Every metric of a classifier."""
        count = 1 if processes is None else processes.count
        with watch("measuring", len(table) // count) as advance:
            outputs = classify.shared_outputs(opened, table.texts, processes, advance)
        check_finite_outputs(outputs, "row")
        targets, known = encoded_targets(table), table.labels
        figures = score_labels(known.kind, outputs, targets, known.names, seed)
        return MeasuredClassifier("", table, figures, outputs)

    def baselines(self, train: LabelledTable | None, say: Say) -> Score:
        """The majority class and TF-IDF; without training rows, the majority of the measured
        ones."""
        fitted = None if train is None else _fitted_baselines(train, say)

        def score(table: LabelledTable) -> dict[str, Any]:
            kind, targets = table.labels.kind, encoded_targets(table)
            own = fitted or {"majority_of_these_rows": Majority(kind, targets)}
            return score_baselines(own, kind, len(table.labels), joined_texts(table), targets)

        return score

    def protocol(self, table: LabelledTable) -> dict[str, Any]:
        """The kind of labels."""
        return {"problem_type": table.labels.kind}

    def facts(self, table: LabelledTable) -> dict[str, Any]:
        """The number of rows, and the labels."""
        return {"examples": len(table), "labels": list(table.labels.names)}

    def judge(self, name: str, figures: Mapping[str, Any], advice: str) -> Iterator[str]:
        """Warnings if the classifier is no better than its baselines."""
        return summary.of_classifier(name, figures, advice)

    def warnings(self, opened: Classifier, processes: Processes) -> Iterator[str]:
        """The rows that were truncated."""
        if cut := classify.truncated_rows(opened.encoder, processes):
            yield cut


def _fitted_baselines(table: LabelledTable, say: Say) -> dict[str, Baseline]:
    say(f"fitting baselines (majority class; TF-IDF with regression) on {len(table):,} rows")
    return fit_baselines(table.labels.kind, joined_texts(table), encoded_targets(table))


def encoded_targets(table: LabelledTable) -> AnyArray:
    """The labels as the arrays that metrics and baselines take."""
    if table.labels.kind == REGRESSION:
        return table.targets.astype(np.float64)
    return table.targets.astype(np.int64)


def joined_texts(table: LabelledTable) -> list[str]:
    """Each row as one text; the two texts of a pair are joined by a line break."""
    return ["\n".join(texts) for texts in table.texts]


def _data(
    found: Sequence[Source], config: Config, model: Pretrained, known: Labels, say: Say
) -> DataConfig:
    """The data section; columns that it does not name are those that the classifier was trained on.

    Raises DataError if there is no label column: no column has such a name, or the guessed column
    holds none of the labels that the model knows.
    """
    data, shape = config.data, model.config
    try:
        resolved = classify.resolve_columns(
            data,
            shape,
            lambda each: roles.resolve_label_columns(found, each, say),
            is_labelled=True,
        )
    except DataError as fault:
        if data.label_column is not None:
            raise
        # If the text columns are missing as well, or the table is broken, report that first.
        find = partial(roles.resolve_label_columns, found, say=lambda text: None, labelled=False)
        classify.resolve_columns(data, shape, find)
        raise _no_labels(data, model, "", fault.next) from fault
    rows = islice(labelled.read_rows(found, resolved, extra=False), _FIRST_ROWS)
    raws = [row.label for row in rows if row.label is not None]
    meant = remembered_columns(shape, "label_column")
    guessed = data.label_column is None and resolved.label_column not in (*meant, *LABEL_NAMES)
    if guessed and raws and all(map(known.unknown, raws)):
        held = f": {resolved.label_column!r} holds {labels.listing(map(str, raws), 3)}"
        raise _no_labels(data, model, f"{held}, and the model knows {labels.listing(known.names)}")
    return resolved


def _no_labels(
    data: DataConfig, model: Pretrained, held: str, advice: str = "data.label_column=NAME"
) -> DataError:
    files = ", ".join(data.test_files)
    trained = remembered_columns(model.config, "label_column")
    named = f" {', '.join(map(repr, trained))}" if trained else ""
    return DataError(
        f"{files} has no clear label column{named}{held}",
        where=files,
        next=f"name it: {advice}; to label the file: "
        f"`llmkit predict --model {model.name} --csv {files}`",
    )


def _names(table: LabelledTable, target: Any) -> Any:
    if table.labels.kind == REGRESSION:
        return float(target)
    if table.labels.kind == MULTI:
        chosen = zip(table.labels.names, target, strict=True)
        return [name for name, is_set in chosen if is_set]
    return table.labels.names[int(target)]


def _predicted(table: LabelledTable, values: AnyArray) -> Any:
    if table.labels.kind == REGRESSION:
        return float(values[0])
    return _names(table, values >= THRESHOLD if table.labels.kind == MULTI else values.argmax())


def _text(table: LabelledTable, row: int) -> str:
    return "\n".join(table.texts[row])
