"""`llmkit predict`: model + rows or lines -> labels with probabilities, or written texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.pair_tokenizer import PairTokenizer
from llmkit.data.readers import piped, roles
from llmkit.data.readers.files import Source, Sources, files_fingerprint
from llmkit.data.readers.piped import Pipe
from llmkit.data.readers.tables import Table
from llmkit.data.records import labelled, tagged
from llmkit.data.records.labelled import Row
from llmkit.data.records.parts import Counts
from llmkit.data.records.tagged import TaggedRow
from llmkit.distributed.launcher import is_main_process
from llmkit.distributed.processes import Processes, join_processes
from llmkit.errors import InputNotFound, UsageError
from llmkit.inference.encoder_decoder import TargetGenerator, first_texts, target_generator
from llmkit.inference.labels import classify, tag
from llmkit.inference.labels.classify import Classifier, R
from llmkit.inference.labels.tag import Tagger
from llmkit.inference.requests import PromptRequest
from llmkit.models import directory, pretrained
from llmkit.models.classifier import head_of
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Advance, Say
from llmkit.reporting import predictions
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.reporting.predictions import WrittenPrediction

_COMMAND, _KEY = "predict", "data.test_files"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any] | None:
    """Labels every row, in order: into a file, for a caller in Python, or onto stdout, on which
    nothing else is printed.

    Each line of a pipe is labelled when it arrives. Several processes share the rows of a file, and
    the main process writes.
    """
    started = time.monotonic()
    opened = _model(config)
    kind = _kind_of(opened, config)
    predictions.check_predictions_file(config.predict)
    with (
        _input(config, sources) as (config, found, pipe),
        join_processes(config.predict.precision) as processes,
        console.watch("labelling", _size(found)) as advance,
    ):
        progress = RowProgress(advance)
        data, windows = _windows(config, found, kind, pipe, console.say, progress.read)
        model = kind.open(processes)
        labels = f"{many(len(kind.names), 'label')}, " if kind.names else ""
        console.say(f"model: {opened.name}, {labels}{model.precision}")
        began = time.monotonic()
        job = _identity(config, opened, found, data, processes.precision)
        with _writer(config, job, console) as writer:
            before = int(processes.largest([writer.rows if writer else 0])[0])
            rest = classify.skip_rows(windows, before)
            for window in kind.label(
                model, rest, config.predict.columns, processes, progress.labelled
            ):
                if writer:
                    writer.write(window)
        if isinstance(model, Classifier) and (
            cut := classify.truncated_rows(model.encoder, processes)
        ):
            console.warn(cut)
        if isinstance(model, _Translator) and model.truncated:
            console.warn(f"{many(model.truncated, 'source')} truncated to the model's length")
    if named := model.encoder.named.warning("row"):
        console.warn(named)
    return (
        _summary(config, writer, before, started, began, model.precision, console)
        if writer
        else None
    )


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks model, output and every row, without loading weights or writing."""
    opened = _model(config)
    kind = _kind_of(opened, config)
    predictions.check_predictions_file(config.predict)
    report = {"command": _COMMAND, "model": opened.name, "labels": list(kind.names)}
    if not (found := sources.of(_KEY)):
        return report
    with console.watch("reading", _size(found)) as advance:
        data, windows = _windows(config, found, kind, None, console.say, advance)
        return {**report, "text_column": data.text_column, "rows": sum(map(len, windows))}


class RowProgress:
    """Counts the bytes of the files when their rows are labelled, not when a window of them is
    read."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.window, self.is_read = advance, 0, False

    def read(self, n_bytes: int) -> None:
        """Adds bytes to the window that is being read."""
        self.window = n_bytes + (0 if self.is_read else self.window)
        self.is_read = False
        self.advance(0)

    def labelled(self, share: float) -> None:
        """Counts a share of the window that was read."""
        self.is_read = True
        self.advance(round(share * self.window))


@contextmanager
def _writer(
    config: Config, job: dict[str, Any], console: Console
) -> Iterator[predictions.Writer | None]:
    """The writer on the main process; None on the others."""
    if not is_main_process():
        yield None
        return
    settings, collected = config.predict, console.collected
    with predictions.open_predictions(settings, job, console.say, collected) as writer:
        yield writer


def _summary(
    config: Config,
    writer: predictions.Writer,
    before: int,
    started: float,
    began: float,
    precision: str,
    console: Console,
) -> dict[str, Any] | None:
    """Reports what was labelled; returns a summary unless the predictions were printed."""
    for name, count in writer.dropped_columns.items():
        console.warn(
            f"{many(count, 'row')} with a column {name!r} that the first row does not have: not "
            "written; predict.format=jsonl keeps it"
        )
    if writer.non_finite:
        console.warn(
            f"{many(writer.non_finite, 'row')} without a prediction: the model's outputs are NaN "
            "or infinite; set predict.precision=fp32 if it is bf16, otherwise its weights are "
            "damaged"
        )
    output, collected, counts = config.predict.output, console.collected, writer.summary()
    if (sentence := predictions.counts_sentence(counts)) and (output is None or console.json):
        console.say(sentence)  # otherwise the printed result ends with it
    if output is None and collected is None:
        return None
    now = time.monotonic()
    return {
        "command": _COMMAND,
        **({} if output is None else {"output": output}),
        "examples": writer.rows,
        "examples_before": before,
        "precision": precision,
        **counts,
        "seconds": round(now - started, 3),
        "examples_per_second": round((writer.rows - before) / (now - began), 1),
        **({"predictions": collected} if output is None else {}),
    }


def _model(config: Config) -> Pretrained:
    """The classifier or tagger, without its weights."""
    opened = pretrained.of_config(config, encoder_decoder=True)
    if opened is None:
        raise UsageError(
            "predict needs a classifier, a tagger or an encoder-decoder model",
            where="model.name_or_path",
            next="`llmkit predict --model RUN`, the run directory of `llmkit finetune`",
        )
    return opened


def _kind_of(opened: Pretrained, config: Config) -> _Texts | _Words:
    """How rows are read and labelled for the model; raises DataError for another kind of model."""
    if opened.kind == "encoder-decoder":
        return _Sources(opened, config)
    if opened.kind == "tagger":
        return _Words(opened)
    classify.check_classifier(opened)
    return _Texts(opened)


@dataclass(frozen=True)
class _Texts:
    """Texts, which a classifier labels."""

    opened: Pretrained

    @property
    def names(self) -> tuple[str, ...]:
        return head_of(self.opened.config).names

    def open(self, processes: Processes) -> Classifier:
        return classify.open_classifier(self.opened, processes.device, processes.precision)

    label: ClassVar[Any] = staticmethod(classify.classify_rows)

    def columns(self, found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
        return classify.resolve_columns(
            data,
            self.opened.config,
            lambda each: roles.resolve_label_columns(found, each, say, False),
        )

    def columns_of(self, table: Table, source: Source, data: DataConfig, say: Say) -> DataConfig:
        if table.format == "txt":
            classify.check_number_of_texts(self.opened.config, 0, str(source.path))
            return data.changed(text_column=0)
        return classify.resolve_columns(
            data,
            self.opened.config,
            lambda each: roles.resolve_by_table(each, table, source, say, False, False),
        )

    def read(
        self, found: Sequence[Source], data: DataConfig, advance: Callable[[int], None]
    ) -> Iterator[Row]:
        return labelled.read_rows(found, data, labelled=False, advance=advance)

    def rows_of(self, table: Table, data: DataConfig, name: str) -> Iterator[Row]:
        return labelled.rows_of(table, data, name, False, True, Counts())


@dataclass
class _Translator:
    """An encoder-decoder model that writes a text for each row; each process writes all."""

    generator: TargetGenerator
    precision: str
    seed: int
    truncated: int = 0
    """Number of sources that were cut."""

    @property
    def encoder(self) -> PairTokenizer:
        return self.generator.pairs


def _write_rows(
    model: _Translator,
    windows: Iterable[Sequence[Row]],
    columns: Sequence[str],
    processes: Processes,
    advance: Callable[[float], None],
) -> Iterator[list[WrittenPrediction]]:
    """The texts for the rows in order, a window of rows at a time."""
    for window in windows:
        items = [PromptRequest(" ".join(row.texts), f"{row.path} row {row.number}")
                 for row in window]  # fmt: skip
        texts, cut = first_texts(model.generator, items, model.seed)
        model.truncated += cut
        yield [
            WrittenPrediction(item.prompt, text, *classify.repeated_columns(row, columns))
            for item, text, row in zip(items, texts, window, strict=True)
        ]
        advance(1.0)


@dataclass(frozen=True)
class _Sources(_Texts):
    """Source texts, for which an encoder-decoder model writes others."""

    config: Config

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def open(self, processes: Processes) -> Any:
        asked, device = self.config.predict.precision, processes.device
        precision = "fp32" if asked == "auto" and device.type == "cpu" else processes.precision
        config = self.config.changed(generation={"precision": precision})
        generator = target_generator(config, self.opened, device)
        return _Translator(generator, precision, config.sampling_seed)

    label: ClassVar[Any] = staticmethod(_write_rows)


@dataclass(frozen=True)
class _Words:
    """Words of texts, which a tagger labels."""

    opened: Pretrained

    @property
    def names(self) -> tuple[str, ...]:
        return tag.tag_set_of(self.opened.config).classes

    def open(self, processes: Processes) -> Tagger:
        return tag.open_tagger(self.opened, processes.device, processes.precision)

    label: ClassVar[Any] = staticmethod(tag.tag_rows)

    def columns(self, found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
        return tag.resolve_columns_of(self.opened, found, data, say, labelled=False)

    def columns_of(self, table: Table, source: Source, data: DataConfig, say: Say) -> DataConfig:
        data = tag.with_remembered_columns(data, self.opened.config, table)
        return roles.resolve_tag_columns(table, str(source.path), data, say, labelled=False)

    def read(
        self, found: Sequence[Source], data: DataConfig, advance: Callable[[int], None]
    ) -> Iterator[TaggedRow]:
        return tagged.read_tagged(found, data, labelled=False, extra=True, advance=advance)

    def rows_of(self, table: Table, data: DataConfig, name: str) -> Iterator[TaggedRow]:
        return tagged.tagged_rows(table, data, name, False, True, Counts())


@contextmanager
def _input(
    config: Config, sources: Sources
) -> Iterator[tuple[Config, Sequence[Source], Pipe | None]]:
    """The config with the files to label, or the pipe whose lines are the rows."""
    if found := sources.of(_KEY):
        yield config, found, None
        return
    if sources.piped is None:
        raise UsageError(
            "there is nothing to label",
            next="give rows with `--csv FILE`, or a text in each line of a pipe",
        )
    piped.refuse_sharing(sources.piped, "--csv FILE")
    pipe = Pipe(sources.piped, config.data)
    if pipe.is_lines:
        yield config, [], pipe
        return
    with pipe.as_file() as (path, data):
        data = data.changed(test_files=(str(path),))
        config = config.changed(data=data)
        yield config, Sources(config).of(_KEY), None


def _windows(
    config: Config,
    found: Sequence[Source],
    kind: _Texts | _Words,
    pipe: Pipe | None,
    say: Say,
    advance: Callable[[int], None],
) -> tuple[DataConfig, Iterator[list[Any]]]:
    """The data section with its columns, and the rows in the windows that are labelled together."""
    if pipe is None:
        data = kind.columns(found, config.data, say)
        rows: Iterator[Any] = _some(kind.read(found, data, advance), data)
        return data, classify.row_windows(classify.check_first_row(rows, config.predict.columns))
    groups = labelled.arriving(pipe)
    first = next(groups, None)
    if first is None:
        return config.data, iter(())
    source = Source(Path(pipe.name), pipe.format, "", 0, 0)
    data = kind.columns_of(first, source, config.data, say)
    tables = chain([first], groups)
    return data, (list(kind.rows_of(each, data, pipe.name)) for each in tables)


def _identity(
    config: Config, opened: Pretrained, found: Sequence[Source], data: DataConfig, precision: str
) -> dict[str, Any]:
    """What the predictions in a file depend on; nothing for a pipe, which cannot be resumed."""
    if config.predict.output is None or not data.test_files:
        return {}
    settings = config.predict.model_dump(mode="json", exclude={"output", "precision"})
    return {
        "model": directory.content_identity(opened.location, opened.revision),
        "rows": files_fingerprint(found, lambda n_bytes: None),
        "data": data.model_dump(mode="json", exclude={"test_files"}),
        "predict": {**settings, "precision": precision},
    }


def _size(found: Sequence[Source]) -> int:
    return sum(source.n_bytes for source in found)


def _some(rows: Iterator[R], data: DataConfig) -> Iterator[R]:
    """The same rows; raises InputNotFound if there are none."""
    number = 0
    for row in rows:
        number += 1
        yield row
    if not number:
        raise InputNotFound(
            f"{_KEY} holds no row",
            where=", ".join(data.test_files),
            next="name a file with a text in each row",
        )
