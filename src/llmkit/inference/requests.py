"""Prompts from the command line, a pipe or a file, checked line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit.config import checks
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, InputNotFound, UsageError

if TYPE_CHECKING:
    from llmkit.data.readers.columns import Columns
    from llmkit.data.readers.delimited import Record
    from llmkit.data.readers.files import PipedInput, Source, Sources
    from llmkit.data.readers.tables import Table


OWN: dict[str, type] = {"system": str, "seed": int, "max_new_tokens": int}
"""Settings that a JSON object may have for its own prompt, with their types."""


@dataclass(frozen=True)
class PromptRequest:
    """One prompt as text, with its own settings."""

    prompt: str
    where: str
    """File and line, or the option."""
    system: str | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of its row, which the result repeats."""


@dataclass(frozen=True)
class PromptRequests:
    """All prompts in order, and the number of blank lines between them."""

    items: Sequence[PromptRequest]
    blank: int = 0


def read_requests(config: Config, sources: Sources) -> PromptRequests:
    """All prompts of `groups` together."""
    several = list(groups(config, sources))
    items = [item for group in several for item in group.items]
    return PromptRequests(items, sum(group.blank for group in several))


def groups(config: Config, sources: Sources) -> Iterator[PromptRequests]:
    """The prompts of `generation.prompts`, else of `generation.prompts_file`, else of a pipe, where
    prompts that arrive together form a group.

    Raises UsageError if neither or both are given, InputNotFound for a missing or empty file, and
    DataError with the line number for an unreadable line.
    """
    settings = config.generation
    if settings.prompts and settings.prompts_file is not None:
        raise UsageError(
            "prompts are given twice",
            where="generation.prompts (--prompt), generation.prompts_file (--prompts-file)",
            next="keep one of them",
        )
    if settings.prompts:
        yield PromptRequests([PromptRequest(text, "--prompt") for text in settings.prompts])
    elif settings.prompts_file is not None:
        found = sources.of("generation.prompts_file")
        yield from _require_prompts(iter([_of_file(found, config)]), settings.prompts_file)
    else:
        given = sources.piped
        if given is None:
            raise UsageError(
                "no prompt is given",
                next='give one with --prompt "...", a file with --prompts-file, or lines in a pipe',
            )
        yield from _require_prompts(_of_pipe(config, given), given.name)


def check_generation_settings(config: Config) -> None:
    """Raises ConfigError for generation settings that contradict each other."""
    for key, what, instead in checks.of_generation(config.generation, is_chat=False):
        raise ConfigError(f"{key} {what}", where=key, next=instead)


def _require_prompts(several: Iterator[PromptRequests], source: str) -> Iterator[PromptRequests]:
    """The same groups; raises InputNotFound if none has a prompt."""
    found = False
    for group in several:
        found = found or bool(group.items)
        yield group
    if not found:
        raise InputNotFound(
            f"{source} holds no prompt", where=source, next="give one with --prompt, or a line each"
        )


def _of_pipe(config: Config, given: PipedInput) -> Iterator[PromptRequests]:
    # Imported here: the table readers take longer to import than a short prompt to answer.
    from llmkit.data.readers import piped
    from llmkit.data.readers.files import find
    from llmkit.data.records import labelled

    piped.refuse_sharing(given, "--prompts-file FILE")
    pipe = piped.Pipe(given, config.data)
    if not pipe.is_lines:
        with pipe.as_file() as (path, data):
            config = config.changed(data=data)
            yield _of_file(find([str(path)], "generation.prompts_file"), config)
        return
    column = None
    for table in labelled.arriving(pipe):
        column = _prompt_columns(table.columns, config, pipe.name) if column is None else column
        yield _of_table(table, column)


def _of_file(found: Sequence[Source], config: Config) -> PromptRequests:
    from llmkit.data.readers import decode, tables

    if len(found) != 1:
        raise UsageError(
            f"{config.generation.prompts_file} is {len(found)} files",
            where="generation.prompts_file",
            next="name one file",
        )
    [source] = found
    table = tables.open_table(source, decode.Reading(config.data, lambda amount: None))
    return _of_table(table, _prompt_columns(table.columns, config, str(source.path)))


def _prompt_columns(columns: Columns, config: Config, where: str) -> Sequence[int]:
    """The columns of the prompt: `data.text_column`, or a column named `prompt` or as texts usually
    are."""
    from llmkit.data.readers.columns import TEXT_NAMES

    wanted, key = config.data.text_column, "data.text_column"
    if wanted is not None:
        return columns.find_all(wanted, key, where)
    names = [name.strip().lower() for name in columns.names or ()]
    for usual in ({"prompt"}, {"text"}, TEXT_NAMES):
        if len(found := [number for number, name in enumerate(names) if name in usual]) == 1:
            return found
    if len(columns) == 1 and columns.names is None:
        return [0]
    if not len(columns):
        return []
    raise columns.fault("there is no prompt: no column is named 'prompt' or 'text'", key, where)


def _of_table(table: Table, numbers: Sequence[int]) -> PromptRequests:
    items, blank = [], 0
    for record in table.records(()):
        if record.values is None or (table.format == "txt" and _is_blank(record.values)):
            blank += 1
        else:
            items.append(_request(record, table.columns, numbers))
    return PromptRequests(items, blank)


def _is_blank(values: Iterable[str]) -> bool:
    return not any(value.strip() for value in values)


def _request(record: Record, columns: Columns, numbers: Sequence[int]) -> PromptRequest:
    names = [columns.address(number) for number in numbers]
    if isinstance(record.values, list):
        fields = record.values
        text = " ".join(fields[number] for number in numbers)
        rest = (number for number in range(len(columns)) if number not in numbers)
        extra = {str(columns.label(number)): fields[number] for number in rest}
        return PromptRequest(text, record.where, extra=extra)
    row = dict(record.values or {})
    if missing := [name for name in names if name not in row]:
        raise DataError(
            f"this line has no {missing[0]}",
            where=record.where,
            next=f'write it as {{"{missing[0]}": "..."}}',
        )
    texts = [row.pop(str(name)) for name in names]
    for name, text in zip(names, texts, strict=True):
        _check_value(str(name), text, str, record.where)
    own = {key: row.pop(key) for key in OWN if row.get(key) is not None}
    for key, value in own.items():
        _check_value(key, value, OWN[key], record.where)
    return PromptRequest(" ".join(texts), record.where, **own, extra=row)


def _check_value(key: str, value: Any, kind: type, where: str) -> None:
    minimum = 1 if key == "max_new_tokens" else 0
    if type(value) is not kind or (isinstance(value, int) and value < minimum):
        wanted = f"an int >= {minimum}" if kind is int else "text"
        raise DataError(f"{key!r} of this line should be {wanted}", where=where, next="correct it")
