"""Read rows with a reference text and a prediction or a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers import tables
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import named_format
from llmkit.data.readers.files import Source
from llmkit.data.readers.roles import with_header
from llmkit.errors import ConfigError, DataError

_Column = str | int


@dataclass(frozen=True)
class Pairs:
    """The rows, in their order."""

    references: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    """Empty unless a prompt column is named."""
    predictions: list[str] = field(default_factory=list)
    """Empty unless a prediction column is named."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """File and row number of each row, counted from 1."""


def read_pairs(found: Sequence[Source], config: Config) -> Pairs:
    """Read the rows of tables with references.

    Raises ConfigError if no prediction or prompt column is named, DataError for a row without a
    reference, and the errors of reading a table.
    """
    settings = config.evaluation
    if settings.prediction_column is None and settings.prompt_column is None:
        raise ConfigError(
            "there is nothing to compare the references with",
            where="evaluation.reference_column",
            next="set evaluation.prediction_column, or evaluation.prompt_column and a model",
        )
    names = ("reference", "prompt", "prediction")
    named = {name: getattr(settings, f"{name}_column") for name in names}
    columns: dict[str, _Column] = {k: v for k, v in named.items() if v is not None}
    pairs, data = Pairs(), with_header(config.data, *columns.values())
    for source in found:
        for number, where, texts in _rows(source, data, columns):
            if not texts["reference"].strip():
                raise DataError(
                    f"the reference of data row {number} is empty",
                    where=where,
                    next="add a reference, or remove the row",
                )
            pairs.places.append((str(source.path), number))
            for name, text in texts.items():
                getattr(pairs, f"{name}s").append(text)
    if not pairs.references:
        raise DataError(
            "the files have no rows", where="data.test_files", next="name files with rows"
        )
    return pairs


def _rows(
    source: Source, data: DataConfig, columns: dict[str, _Column]
) -> Iterator[tuple[int, str, dict[str, str]]]:
    if named_format(source, data) == "txt":
        raise DataError(
            "plain text has no columns",
            where=str(source.path),
            next="use a .csv, .tsv, .jsonl or .parquet file, or set data.format",
        )
    table = tables.open_table(source, Reading(data, lambda _: None))
    numbers = {
        name: table.columns.find(column, f"evaluation.{name}_column", str(source.path))
        for name, column in columns.items()
    }
    for record in table.records(list(numbers.values())):
        if record.values is not None:
            texts = {name: tables.text(record, table.columns, n) for name, n in numbers.items()}
            yield record.number, record.where, texts
