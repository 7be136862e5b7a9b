"""`llmkit predict`: classifier + rows or lines -> labels with probabilities."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from llmkit.config.schema import Config, DataConfig
from llmkit.data import labelled, sources
from llmkit.data.labelled import Row
from llmkit.errors import DataError, InputNotFound, UsageError
from llmkit.evaluation import labelling, prediction
from llmkit.models import classifier, content
from llmkit.reporting import predictions
from llmkit.reporting.console import Console, is_main_process
from llmkit.training import runtime

COMMAND, KEY = "predict", "test_files"


def run(config: Config, console: Console) -> dict[str, Any] | None:
    """Labels every row, in order: into a file, or onto stdout, where nothing else is printed."""
    started = time.monotonic()
    if not is_main_process():
        return None
    name, shape = _classifier(config)
    predictions.check(config.predict)
    data = _settled(config, shape, console.say)
    with (
        runtime.start(config.predict.precision, (), Path()) as processes,
        console.watch("labelling", _size(data)) as advance,
    ):
        rows = labelling.check_first(_rows(data, advance), config.predict.columns)
        model = prediction.open_classifier(
            name, config.model.revision, processes.device, processes.precision
        )
        console.say(f"model: {name}, {len(model.head.names)} labels, {model.precision}")
        began = time.monotonic()
        made_with = _made_with(config, data, processes.precision)
        with predictions.opened(config.predict, made_with, console.say) as writer:
            before = writer.rows
            rest = itertools.islice(rows, before, None)
            for window in labelling.label(model, rest, config.predict.columns):
                writer.write(window)
    if named := model.encoder.named.warning("row"):
        console.warn(named)
    if config.predict.output is None:
        return None
    now = time.monotonic()
    return {
        "command": COMMAND,
        "output": config.predict.output,
        "examples": writer.rows,
        "examples_before": before,
        "precision": model.precision,
        "seconds": round(now - started, 3),
        "examples_per_second": round((writer.rows - before) / (now - began), 1),
    }


def check(config: Config, console: Console) -> dict[str, Any]:
    """Checks model, output and every row, without weights and without writing."""
    name, shape = _classifier(config)
    predictions.check(config.predict)
    data = _settled(config, shape, console.say)
    found = {"command": COMMAND, "model": name, "labels": list(classifier.head_of(shape).names)}
    if not data.test_files:
        return found
    with console.watch("reading", _size(data)) as advance:
        rows = labelling.check_first(_rows(data, advance), config.predict.columns)
        return {**found, "text_column": data.text_column, "rows": sum(1 for _ in rows)}


def _classifier(config: Config) -> tuple[str, PretrainedConfig]:
    """The name and the config of the classifier."""
    name = config.model.name_or_path
    if name is None:
        raise UsageError(
            "predict needs a classifier",
            where="model.name_or_path",
            next="`llmkit predict --model RUN`, the run directory of `llmkit finetune`",
        )
    return name, prediction.classifier_config(name, config.model.revision)


def _settled(config: Config, shape: PretrainedConfig, say: Callable[[str], None]) -> DataConfig:
    """The data section with the columns of the text: as given, as trained on, or as found."""
    data = config.data
    if not data.test_files:
        if sys.stdin.isatty():
            raise UsageError(
                "there is nothing to label",
                next="give rows with `--csv FILE`, or a text in each line of a pipe",
            )
        return data
    columns = classifier.remembered_columns(shape)
    if data.text_column is None and columns:
        as_trained = data.model_copy(
            update={"text_column": columns if len(columns) > 1 else columns[0]}
        )
        try:
            return labelled.settle(as_trained, KEY, say, labelled=False)
        except DataError:
            pass  # a file of its own, with other columns
    return labelled.settle(data, KEY, say, labelled=False)


def _made_with(config: Config, data: DataConfig, precision: str) -> dict[str, Any]:
    """What the predictions in a file hang on; nothing for a pipe, which never comes again."""
    if config.predict.output is None or not data.test_files:
        return {}
    assert config.model.name_or_path is not None
    found = sources.find(data.test_files, f"data.{KEY}")
    settings = config.predict.model_dump(mode="json", exclude={"output", "precision"})
    return {
        "model": content.identity(config.model.name_or_path, config.model.revision),
        "rows": sources.fingerprint(found, lambda n_bytes: None),
        "data": data.model_dump(mode="json", exclude={"test_files"}),
        "predict": {**settings, "precision": precision},
    }


def _size(data: DataConfig) -> int:
    if not data.test_files:
        return 0
    return sum(source.n_bytes for source in sources.find(data.test_files, f"data.{KEY}"))


def _rows(data: DataConfig, advance: Callable[[int], None]) -> Iterator[Row]:
    if not data.test_files:
        yield from _lines_of_stdin(data)
        return
    number = 0
    for row in labelled.read(data, KEY, labelled=False, advance=advance):
        number += 1
        yield row
    if not number:
        raise InputNotFound(f"data.{KEY} holds no row", where=", ".join(data.test_files))


def _lines_of_stdin(data: DataConfig) -> Iterator[Row]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode(data.encoding).removeprefix("\ufeff" if number == 1 else "")
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte 0x{line[error.start]:02x} in column {error.start + 1} is not "
                f"{data.encoding}",
                where=f"stdin:{number}",
                next="name the right encoding with data.encoding, or convert the text",
            ) from error
        yield Row(number, "stdin", (text.rstrip("\r\n"),), None, {})
