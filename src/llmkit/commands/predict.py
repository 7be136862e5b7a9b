"""`llmkit predict`: model + rows or lines -> labels with probabilities, or written texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers import piped
from llmkit.data.readers.files import Source, Sources, files_fingerprint
from llmkit.data.readers.piped import Pipe
from llmkit.data.records import labelled
from llmkit.distributed.launcher import is_main_process
from llmkit.distributed.processes import join_processes
from llmkit.errors import InputNotFound, UsageError
from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import Classifier, R
from llmkit.inference.labels.row_kinds import RowKind, Translator, row_kind_of
from llmkit.models import directory, pretrained
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Advance, Say
from llmkit.reporting import predictions
from llmkit.reporting.console import Console
from llmkit.reporting.format import many

_COMMAND, _KEY = "predict", "data.test_files"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any] | None:
    """Labels every row, in order: into a file, for a caller in Python, or onto stdout, on which
    nothing else is printed.

    Each line of a pipe is labelled when it arrives. Several processes share the rows of a file, and
    the main process writes.
    """
    started = time.monotonic()
    opened = _model(config)
    kind = row_kind_of(opened, config)
    predictions.check_predictions_file(config.predict)
    with (
        _input(config, sources) as (config, found, pipe),
        join_processes(config.predict.precision, one_model=opened.is_divided) as processes,
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
        if isinstance(model, Translator) and model.truncated:
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
    kind = row_kind_of(opened, config)
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
    opened = pretrained.to_use(config)
    if opened is None:
        raise UsageError(
            "predict needs a classifier, a tagger or an encoder-decoder model",
            where="model.name_or_path",
            next="`llmkit predict --model RUN`, the run directory of `llmkit finetune`",
        )
    return opened


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
    kind: RowKind,
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
