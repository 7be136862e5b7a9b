"""What a token file does not keep of its documents: their characters and their domains."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from llmkit.config.schema import Config, DataConfig
from llmkit.data import domains, sources, tables
from llmkit.data.delimited import named_format
from llmkit.data.documents import pieces
from llmkit.data.reading import Reading
from llmkit.data.sources import Source
from llmkit.errors import ConfigError
from llmkit.progress import Watch


@dataclass(frozen=True)
class Survey:
    """The documents that hold text, in their order."""

    characters: int
    domains: tuple[str, ...]
    """The names of the domains, in the order in which they first come."""
    domain_of_document: array[int]
    """[documents], the number of each one's domain."""


class _Document(NamedTuple):
    characters: int
    blank: bool


def survey(data: DataConfig, key: str, column: str | int | None, watch: Watch) -> Survey:
    """Reads the documents of a key of the data section once more.

    Their domain is their file, or what a column of their table holds. Raises what reading raises.
    """
    found = sources.find(getattr(data, key), f"data.{key}")
    characters, numbers, domain_of_document = 0, dict[str, int](), array("l")
    with watch("counting characters", sum(source.n_bytes for source in found)) as advance:
        for source in found:
            documents = _documents(source, data, advance)
            domains = repeat(str(source.path)) if column is None else _column(source, data, column)
            for document, domain in zip(documents, domains, strict=False):
                if not document.blank:
                    characters += document.characters
                    domain_of_document.append(numbers.setdefault(domain, len(numbers)))
    return Survey(characters, tuple(numbers), domain_of_document)


def survey_mixture(config: Config, watch: Watch) -> Survey:
    """The same for the held-out text of `data.mixture`, whose domains have names."""
    if config.evaluation.domain_column is not None:
        raise ConfigError(
            "the domains are those of data.mixture",
            where="evaluation.domain_column",
            next="leave it out, or name other text in data.test_files",
        )
    characters, names, domain_of_document = 0, list[str](), array("l")
    for name, pair in domains.texts(config, watch).items():
        if pair.held_out is not None:
            documents = pair.held_out.part(pair.held_out_part)
            with watch("counting characters", documents.n_bytes) as advance:
                for text, _ in documents.pieces():
                    characters += len(text)
                    advance(len(text.encode()))
            domain_of_document.extend([len(names)] * documents.n_documents)
            names.append(name)
        pair.close()
    return Survey(characters, tuple(names), domain_of_document)


def _documents(
    source: Source, data: DataConfig, advance: Callable[[int], None]
) -> Iterator[_Document]:
    characters, blank = 0, True
    for text, last in pieces(source, Reading(data, advance)):
        characters += len(text)
        blank = blank and (not text or text.isspace())
        if last:
            yield _Document(characters, blank)
            characters, blank = 0, True


def _column(source: Source, data: DataConfig, column: str | int) -> Iterator[str]:
    """The value of each row in a column; blank rows count."""
    if named_format(source, data) == "txt":
        raise ConfigError(
            "plain text has no columns",
            where=f"evaluation.domain_column; {source.path}",
            next="leave evaluation.domain_column out: the domain is then the file",
        )
    table = tables.open_table(source, Reading(data, lambda _: None))
    number = table.columns.find(column, "evaluation.domain_column", str(source.path))
    for record in table.records([number]):
        blank = record.values is None
        yield "" if blank else str(tables.field(record, table.columns, number))
