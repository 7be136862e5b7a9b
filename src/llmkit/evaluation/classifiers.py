"""Evaluate classifiers on labelled rows: metrics, baselines, worst mistakes, and comparisons."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit import bootstrap
from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.encoded import LabelledTable
from llmkit.data.readers import roles
from llmkit.data.readers.columns import LABEL_NAMES
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import dataset, labelled, labels
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.evaluation.baselines import Baseline, Majority, fit_baselines, score_baselines
from llmkit.evaluation.label_metrics import score_labels
from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import THRESHOLD, AnyArray, Classifier, probabilities
from llmkit.models.classifier import head_of, remembered_columns
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out
from llmkit.reporting.format import many
from llmkit.reporting.held_out import HeldOut

_FIRST_ROWS = 1000
"""Rows that are searched for labels that the model knows."""

BULKY = ("per_class", "confusion_matrix", "confused", "worst")
"""Metrics that are too large for a plain-text table."""

_WORST = 10
"""Mistakes of a finished model that are kept with its figures."""

_MAX_SHOWN = 200
"""Maximum number of characters shown of a misclassified text."""


@dataclass(frozen=True)
class MeasuredClassifier:
    """The results of one classifier."""

    name: str
    table: LabelledTable
    outputs: AnyArray
    """[rows, labels] logits, or [rows, 1] numbers."""
    figures: dict[str, Any]


class LabelledTables(NamedTuple):
    """The rows encoded with the labels of one classifier."""

    test: LabelledTable
    train: LabelledTable | None
    """The training rows for the baselines, if given."""


def measure_classifiers(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    watch: Watch,
    say: Say,
    warn: Say,
) -> list[MeasuredClassifier]:
    """Evaluates classifiers on `data.test_files`; checks rows and labels before loading weights.

    Labels are matched by name. The baselines are fitted to `data.train_files`; without them, the
    only baseline is the majority class of the rows themselves.
    """
    found = labelled_tables(config, sources, models, watch, say, warn)
    return [
        _measured(config, model, tables, processes, watch, say, warn)
        for model, tables in zip(models, found, strict=True)
    ]


def labelled_tables(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    watch: Watch,
    say: Say,
    warn: Say,
) -> list[LabelledTables]:
    """The rows, encoded with the labels of each classifier."""
    return [_tables(config, sources, model, watch, say, warn) for model in models]


def classifier_result(config: Config, measured: Sequence[MeasuredClassifier]) -> dict[str, Any]:
    """The metrics of one classifier, or of several with comparisons, and the worst mistakes."""
    found: dict[str, Any] = {}
    if len(measured) == 1:
        found |= measured[0].figures
    else:
        found["models"] = [each.figures for each in measured]
        found["comparisons"] = list(_comparisons(measured, config.seed))
    if config.evaluation.worst:
        worst = [row for each in measured for row in _worst(each, config.evaluation.worst)]
        found["worst"] = worst
    return found


def measure_rows(
    measured: MeasuredClassifier, seed: int, chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """The metrics of the classifier on the chosen rows alone."""
    table = measured.table.part(chosen)
    labels = table.labels
    found = score_labels(
        labels.kind, measured.outputs[chosen], encoded_targets(table), labels.names, seed
    )
    return without_bulky(found)


def classifier_samples(measured: Sequence[MeasuredClassifier]) -> Iterator[dict[str, Any]]:
    """Every row with its label, its prediction, and the probability of each label."""
    for each in measured:
        kind, names = each.table.labels.kind, each.table.labels.names
        for row, values in enumerate(probabilities(kind, each.outputs).tolist()):
            yield {
                "model": each.name,
                **_row(each, row),
                "text": _text(each.table, row),
                "probabilities": dict(zip(names, values, strict=True)),
            }


def measure_trained(
    classifier: Classifier,
    table: LabelledTable,
    fitted: Mapping[str, Baseline],
    seed: int,
    watch: Watch,
) -> tuple[dict[str, Any], HeldOut]:
    """Every metric of the classifier on the table, its worst mistakes, and under `baseline` the
    metrics of the baselines; and what became of each row."""
    kind, names = table.labels.kind, table.labels.names
    with watch("measuring", len(table)) as advance:
        outputs = _finite(classify.shared_outputs(classifier, table.texts, None, advance))
    targets = encoded_targets(table)
    figures = score_labels(kind, outputs, targets, names, seed)
    texts = joined_texts(table)
    beside = score_baselines(dict(fitted), kind, len(names), texts, targets)
    measured = MeasuredClassifier("", table, outputs, figures)
    worst = list(_worst(measured, _WORST))
    return {**figures, "worst": worst, "baseline": beside}, _held_out(measured)


def fitted_baselines(table: LabelledTable, say: Callable[[str], None]) -> dict[str, Baseline]:
    """The baselines, fitted to a training table."""
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


def without_bulky(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without those for each class."""
    return {name: value for name, value in figures.items() if name not in BULKY}


def _tables(
    config: Config, sources: Sources, model: Pretrained, watch: Watch, say: Say, warn: Say
) -> LabelledTables:
    head = head_of(model.config)
    known = Labels(head.problem_type, head.names, from_file=config.data.label_names is not None)
    found, learned, train = sources.of("data.test_files"), sources.of("data.train_files"), None
    data = _data(found, config, model, known, say)
    test = dataset.load_known(found, data, "test", known, watch, warn)
    if learned:
        data = roles.resolve_label_columns(learned, data, say)
        train = dataset.load_known(learned, data, "train", known, watch, say)
    return LabelledTables(test, train)


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


def _measured(
    config: Config,
    model: Pretrained,
    tables: LabelledTables,
    processes: Processes,
    watch: Watch,
    say: Say,
    warn: Say,
) -> MeasuredClassifier:
    table = tables.test
    kind, names = table.labels.kind, table.labels.names
    classifier = classify.open_classifier(model, processes.device, processes.precision)
    started = time.monotonic()
    outputs = _outputs(classifier, table, processes, watch)
    if named := control_tokens(model.tokenizer).warning(table.texts, "row"):
        warn(named)
    if cut := classify.truncated_rows(classifier.encoder, processes):
        warn(cut)
    seconds = time.monotonic() - started
    figures = score_labels(kind, outputs, encoded_targets(table), names, config.seed)
    return MeasuredClassifier(model.name, table, outputs, {
        "model": model.name,
        **figures,
        "baseline": _baselines(table, tables.train, say),
        "protocol": {"problem_type": kind, "precision": processes.precision},
        "seconds": seconds,
        "examples_per_second": len(table) / seconds,
    })  # fmt: skip


def _outputs(
    classifier: Classifier, table: LabelledTable, processes: Processes, watch: Watch
) -> AnyArray:
    """The classifier's outputs for all rows, which all processes share."""
    with watch("measuring", len(table) // processes.count) as advance:
        return _finite(classify.shared_outputs(classifier, table.texts, processes, advance))


def _finite(outputs: AnyArray) -> AnyArray:
    """The outputs for rows; raises DataError if some are NaN or infinite."""
    if not np.isfinite(outputs).all():
        bad = int((~np.isfinite(outputs)).any(1).sum())
        raise DataError(
            f"the model's outputs are NaN or infinite for {many(bad, 'row')}",
            where="model.name_or_path",
            next="set evaluation.precision=fp32 if it is bf16; otherwise the weights are damaged",
        )
    return outputs


def _baselines(table: LabelledTable, train: LabelledTable | None, say: Say) -> dict[str, Any]:
    kind, targets = table.labels.kind, encoded_targets(table)
    fitted: dict[str, Baseline] = {"majority_of_these_rows": Majority(kind, targets)}
    if train is not None:
        fitted = fitted_baselines(train, say)
    return score_baselines(fitted, kind, len(table.labels), joined_texts(table), targets)


def _worst(measured: MeasuredClassifier, most: int) -> Iterator[dict[str, Any]]:
    """The mistakes with the highest loss."""
    losses = _losses(measured)
    losses[_is_correct(measured)] = -np.inf
    for row in np.argsort(-losses, kind="stable")[:most].tolist():
        if losses[row] > -np.inf:
            text = " ".join(_text(measured.table, row).split())
            cut = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"
            yield {**_row(measured, row), "loss": float(losses[row]), "text": cut}


def _comparisons(measured: Sequence[MeasuredClassifier], seed: int) -> Iterator[dict[str, Any]]:
    """Pairwise differences in accuracy with paired confidence intervals."""
    if measured[0].table.labels.kind == REGRESSION:
        return
    for one, other in ((a, b) for i, a in enumerate(measured) for b in measured[i + 1 :]):
        hits = np.column_stack([_is_correct(one), _is_correct(other)]).astype(np.float64)
        drawn = bootstrap.resample(hits, seed) / len(hits)
        low, high = bootstrap.interval(drawn[:, 0] - drawn[:, 1])
        yield {
            "model": one.name,
            "other": other.name,
            "accuracy_difference": float((hits[:, 0] - hits[:, 1]).mean()),
            "low": low,
            "high": high,
            "better": (one.name if low > 0 else other.name) if low * high > 0 else None,
        }


def _held_out(measured: MeasuredClassifier) -> HeldOut:
    """The label, the prediction and the loss of each row."""
    table, outputs = measured.table, measured.outputs
    kind, names = table.labels.kind, tuple(table.labels.names)
    columns: dict[str, AnyArray] = {"label": table.targets, "predicted": outputs[:, 0]}
    if kind != REGRESSION:
        is_set = kind == MULTI
        predicted = probabilities(MULTI, outputs) >= THRESHOLD if is_set else outputs.argmax(1)
        columns |= {"predicted": predicted, "loss": _losses(measured).astype(np.float32)}
    kept = np.arange(0, len(table), -(-len(table) // held_out.MOST_ROWS))
    columns = {name: values[kept] for name, values in columns.items()}
    named = {SINGLE: held_out.OF_LABELS, MULTI: held_out.OF_LABEL_SETS}.get(
        kind, held_out.OF_NUMBERS
    )
    return HeldOut(named, table.fingerprint, {"unit": kept, **columns}, names)


def _is_correct(measured: MeasuredClassifier) -> AnyArray:
    """[rows], whether the prediction of a row is exactly right; always False for regression."""
    table, outputs = measured.table, measured.outputs
    if table.labels.kind == SINGLE:
        return np.asarray(outputs.argmax(1) == table.targets)
    if table.labels.kind == MULTI:
        predicted = probabilities(MULTI, outputs) >= THRESHOLD
        return np.asarray((predicted == table.targets.astype(bool)).all(1))
    return np.zeros(len(table), dtype=bool)


def _losses(measured: MeasuredClassifier) -> AnyArray:
    """[rows], the loss of each row: cross entropy, or the squared error."""
    table, outputs = measured.table, measured.outputs
    if table.labels.kind == REGRESSION:
        return np.asarray((outputs[:, 0] - table.targets) ** 2)
    if table.labels.kind == MULTI:
        return np.asarray((np.logaddexp(0, outputs) - outputs * table.targets).mean(1))
    probability = probabilities(SINGLE, outputs)
    tiny = np.finfo(np.float64).tiny
    chosen = probability[np.arange(len(table)), table.targets]
    return np.asarray(-np.log(np.maximum(chosen, tiny)))


def _row(measured: MeasuredClassifier, row: int) -> dict[str, Any]:
    """The place of a row, its label and its prediction."""
    table = measured.table
    file, number = table.places[row]
    values = probabilities(table.labels.kind, measured.outputs[row : row + 1])[0]
    label, predicted = _names(table, table.targets[row]), _predicted(table, values)
    return {"file": file, "row": number, "label": label, "predicted": predicted}


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
