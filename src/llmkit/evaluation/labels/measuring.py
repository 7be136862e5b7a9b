"""Measure models on labelled rows: metrics beside baselines, worst mistakes, and comparisons."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit import bootstrap
from llmkit.config.schema import Config
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records.dataset import T
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.reporting.held_out import HeldOut

BULKY = ("per_class", "confusion_matrix", "confused", "worst")
"""Metrics that are too large for a plain-text table."""

_WORST = 10
"""Mistakes of a finished model that are kept with its figures."""

Score = Callable[[Any], dict[str, Any]]
"""Computes the metrics of baselines on a table."""


LoadPart = Callable[[Sequence[Source], str, Say], T]
"""Reads the sources of a part, such as `test`; warns of unusual rows."""


class RowTables(NamedTuple, Generic[T]):
    """The rows encoded with the labels of one model."""

    test: T
    train: T | None
    """The training rows for the baselines, if given."""


@dataclass(frozen=True)
class MeasuredRows(ABC, Generic[T]):
    """The results of one model on the rows of a table."""

    name: str
    table: T
    figures: dict[str, Any]

    @abstractmethod
    def figures_of(self, chosen: NDArray[np.bool_], seed: int) -> dict[str, Any]:
        """The metrics on the chosen rows alone."""

    @abstractmethod
    def samples(self) -> Iterator[dict[str, Any]]:
        """Every row with its label and its prediction."""

    @abstractmethod
    def worst(self, most: int) -> Iterator[dict[str, Any]]:
        """The mistakes with the highest loss."""

    @abstractmethod
    def all_held_out(self) -> HeldOut:
        """What became of each row."""

    @abstractmethod
    def paired_metric(self, other: MeasuredRows[T]) -> str | None:
        """The metric in which two models are compared; None if they are not."""

    @abstractmethod
    def row_sums(self) -> NDArray[np.float64]:
        """[rows, sums], of which `metric_of_sums` computes a metric."""

    def metric_of_sums(self, metric: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """[draws], a metric of drawn rows, from their sums [draws, sums]: the first by the second,
        a mean."""
        return np.asarray(sums[:, 0] / sums[:, 1])

    def held_out(self) -> HeldOut:
        """What became of each row, or of a sample if there are many."""
        n_rows, whole = len(self.table), self.all_held_out()
        kept = np.arange(0, n_rows, -(-n_rows // held_out.MOST_ROWS))
        chosen = {name: values[kept] for name, values in whole.columns.items()}
        return replace(whole, columns={"unit": kept, **chosen})


class RowEvaluation(ABC, Generic[T]):
    """How models of one kind are measured on rows."""

    unit: ClassVar[str]
    """What is counted per second."""

    @abstractmethod
    def loader(self, config: Config, model: Pretrained, console: Console) -> LoadPart[T]:
        """Reads the rows of a part with the labels of the model."""

    def tables(
        self, config: Config, sources: Sources, model: Pretrained, console: Console
    ) -> RowTables[T]:
        """The rows of `data.test_files`, and of `data.train_files` if there are any, with the
        labels of the model."""
        load, learned = self.loader(config, model, console), sources.of("data.train_files")
        test = load(sources.of("data.test_files"), "test", console.warn)
        return RowTables(test, load(learned, "train", console.say) if learned else None)

    @abstractmethod
    def open(self, model: Pretrained, device: torch.device, precision: str) -> Any:
        """The model with its weights."""

    @abstractmethod
    def measure(
        self, opened: Any, table: T, processes: Processes | None, seed: int, watch: Watch
    ) -> MeasuredRows[T]:
        """Every metric of an opened model, whose work the processes share."""

    @abstractmethod
    def baselines(self, train: T | None, say: Say) -> Score | None:
        """The baselines, fitted to training rows; None if they cannot do without."""

    @abstractmethod
    def protocol(self, table: T) -> dict[str, Any]:
        """What the metrics depend on, besides the precision."""

    def facts(self, table: T) -> dict[str, Any]:
        """What is reported of rows before they are measured."""
        counts = table.counts()
        return {"examples": counts.pop("rows"), **counts}

    @abstractmethod
    def judge(self, name: str, figures: Mapping[str, Any], advice: str) -> Iterator[str]:
        """Warnings if the metrics on the rows `name` show that little was learned."""

    def size(self, table: T) -> int:
        """The number of units in a table."""
        return len(table)

    def warnings(self, opened: Any, processes: Processes) -> Iterator[str]:
        """What an opened model could not do with the rows; all processes call this."""
        return iter(())


def measure_models(
    kind: RowEvaluation[T],
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> list[MeasuredRows[T]]:
    """Evaluates models on `data.test_files`; checks rows and labels before loading weights.

    Labels are matched by name. The baselines are fitted to `data.train_files`.
    """
    tables = [kind.tables(config, sources, model, console) for model in models]
    return [
        _measured(kind, config, model, each, processes, console)
        for model, each in zip(models, tables, strict=True)
    ]


def _measured(
    kind: RowEvaluation[T],
    config: Config,
    model: Pretrained,
    tables: RowTables[T],
    processes: Processes,
    console: Console,
) -> MeasuredRows[T]:
    table = tables.test
    opened = kind.open(model, processes.device, processes.precision)
    started = time.monotonic()
    measured = kind.measure(opened, table, processes, config.seed, console.watch)
    if named := control_tokens(model.tokenizer).warning(table.texts, "row"):
        console.warn(named)
    for warning in kind.warnings(opened, processes):
        console.warn(warning)
    seconds = time.monotonic() - started
    score = kind.baselines(tables.train, console.say)
    figures = {
        "model": model.name,
        **measured.figures,
        **({} if score is None else {"baseline": score(table)}),
        "protocol": {**kind.protocol(table), "precision": processes.precision},
        "seconds": seconds,
        f"{kind.unit}_per_second": kind.size(table) / seconds,
    }
    return replace(measured, name=model.name, figures=figures)


def measure_finished(
    kind: RowEvaluation[T], opened: Any, table: T, score: Score | None, seed: int, watch: Watch
) -> tuple[dict[str, Any], HeldOut]:
    """Every metric of a trained model on the table, its worst mistakes, and under `baseline` the
    metrics of the baselines; and what became of each row."""
    measured = kind.measure(opened, table, None, seed, watch)
    worst = list(measured.worst(_WORST))
    beside = {} if score is None else score(table)
    return {**measured.figures, "worst": worst, "baseline": beside}, measured.held_out()


def result_of_rows(config: Config, measured: Sequence[MeasuredRows[Any]]) -> dict[str, Any]:
    """The metrics of one model, or of several with comparisons, and the worst mistakes."""
    found = figures_beside(measured, lambda: _comparisons(measured, config.seed))
    if most := config.evaluation.worst:
        found["worst"] = [mistake for each in measured for mistake in each.worst(most)]
    return found


class WithFigures(Protocol):
    """The results of one model."""

    @property
    def figures(self) -> dict[str, Any]: ...


def figures_beside(
    measured: Sequence[WithFigures], compare: Callable[[], Iterator[dict[str, Any]]]
) -> dict[str, Any]:
    """The figures of one model, or those of several with comparisons."""
    if len(measured) == 1:
        return dict(measured[0].figures)
    return {"models": [each.figures for each in measured], "comparisons": list(compare())}


def _comparisons(measured: Sequence[MeasuredRows[Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Pairwise differences of the main metric with paired confidence intervals."""
    for one, other in ((a, b) for i, a in enumerate(measured) for b in measured[i + 1 :]):
        metric = one.paired_metric(other)
        if metric is None:
            continue
        sums = [each.row_sums() for each in (one, other)]
        drawn = np.split(bootstrap.resample(np.hstack(sums), seed), [sums[0].shape[1]], axis=1)
        values = [one.metric_of_sums(metric, part) for part in drawn]
        low, high = bootstrap.interval(values[0] - values[1])
        yield {
            "model": one.name,
            "other": other.name,
            f"{metric}_difference": one.figures[metric] - other.figures[metric],
            "low": low,
            "high": high,
            "better": (one.name if low > 0 else other.name) if low * high > 0 else None,
        }


def samples_of_rows(measured: Sequence[MeasuredRows[Any]]) -> Iterator[dict[str, Any]]:
    """Every row of each model with its label and its prediction."""
    for each in measured:
        for sample in each.samples():
            yield {"model": each.name, **sample}


def without_bulky(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without those for each class."""
    return {name: value for name, value in figures.items() if name not in BULKY}


def check_finite_outputs(values: NDArray[Any], unit: str) -> None:
    """Raises DataError if an output [units, values] of a model is NaN or infinite."""
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values.reshape(len(values), -1))).any(1).sum())
        raise DataError(
            f"the model's outputs are NaN or infinite for {many(bad, unit)}",
            where="model.name_or_path",
            next="set evaluation.precision=fp32 if it is bf16; otherwise the weights are damaged",
        )
