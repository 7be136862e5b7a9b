"""Which columns of a table hold prompts and responses, or whole conversations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llmkit.config.schema import DataConfig
from llmkit.config.yaml12 import dump
from llmkit.data import tables
from llmkit.data.columns import Columns, Numbers
from llmkit.data.delimited import named_format
from llmkit.data.reading import Reading
from llmkit.data.sources import Source
from llmkit.errors import DataError
from llmkit.progress import Say

PROMPT, RESPONSE, MESSAGES = "data.prompt_column", "data.response_column", "data.messages_column"

_PROMPTS = frozenset("prompt instruction question query".split())
_RESPONSES = frozenset("response output answer completion reply".split())
_CONVERSATIONS = frozenset("messages conversation conversations".split())
_TASK = ("instruction", "input")
"""What to do, and what to do it with: two columns that are one prompt."""


def resolve_chat_columns(found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
    """The data section with the columns of the tables spelled out.

    Columns that are not given are guessed by the first table if only one can be meant, and the
    guess is reported. Raises DataError with the columns that exist where that is not so.
    """
    data = _with_header(data)
    for source in found:
        columns = _columns(source, data)
        if not len(columns):
            continue
        settled = _settled(data, columns, str(source.path))
        said = {name: value for name, value in settled.items() if getattr(data, name) is None}
        if said:
            told = ", ".join(f"data.{name}={dump(value)}" for name, value in said.items())
            say(f"{source.path}: found {told}; the columns are {columns}")
        header = {} if columns.keyed else {"header": columns.names is not None}
        return data.model_copy(update={**settled, **header})
    return data


def numbers(columns: Columns, data: DataConfig, where: str) -> tuple[Numbers, Numbers, Numbers]:
    """The columns of prompt, response and messages in a table, as far as the config names them."""
    return (
        _found(columns, data.prompt_column, PROMPT, where),
        _found(columns, data.response_column, RESPONSE, where),
        _found(columns, data.messages_column, MESSAGES, where),
    )


def _with_header(data: DataConfig) -> DataConfig:
    """A column that is named stands in a header."""
    given = (data.prompt_column, data.response_column, data.messages_column)
    flat = [each for one in given for each in (one if isinstance(one, tuple) else (one,))]
    if data.header == "auto" and any(isinstance(each, str) for each in flat):
        return data.model_copy(update={"header": True})
    return data


def _columns(source: Source, data: DataConfig) -> Columns:
    if named_format(source, data) == "txt":
        raise DataError(
            "a plain text file has no columns for prompts and responses",
            where=str(source.path),
            next="give them as .csv, .tsv, .jsonl or .parquet, or set data.format",
        )
    return tables.open_table(source, Reading(data, lambda n_bytes: None)).columns


def _settled(data: DataConfig, columns: Columns, where: str) -> dict[str, Any]:
    """The columns, given or guessed, by their keys."""
    prompt, response, messages = numbers(columns, data, where)
    if messages:
        return {"messages_column": columns.label(messages[0])}
    guessed = prompt or _guess_prompt(columns), response or _only(columns, _RESPONSES)
    conversations = _only(columns, _CONVERSATIONS)
    if conversations and not (prompt or response):
        if all(guessed):
            raise columns.fault("there are conversations, and prompts besides", MESSAGES, where)
        return {"messages_column": columns.label(conversations[0])}
    for found, key, what in zip(guessed, (PROMPT, RESPONSE), ("prompt", "response"), strict=True):
        if not found:
            raise columns.fault(f"it is not clear which column is the {what}", key, where)
    named = tuple(columns.label(number) for number in guessed[0])
    return {
        "prompt_column": named if len(named) > 1 else named[0],
        "response_column": columns.label(guessed[1][0]),
    }


def _guess_prompt(columns: Columns) -> Numbers:
    """The column of the prompt, or the two of a task, if only one can be meant."""
    names = [name.strip().lower() for name in columns.names or ()]
    if all(names.count(name) == 1 for name in _TASK) and not _PROMPTS & {*names} - {*_TASK}:
        return tuple(names.index(name) for name in _TASK)
    return _only(columns, _PROMPTS)


def _only(columns: Columns, usual: Collection[str]) -> Numbers:
    """The only column that has one of these names."""
    names = [name.strip().lower() for name in columns.names or ()]
    found = [number for number, name in enumerate(names) if name in usual]
    return (found[0],) if len(found) == 1 else ()


def _found(columns: Columns, wanted: Any, key: str, where: str) -> Numbers:
    several = wanted if isinstance(wanted, tuple) else () if wanted is None else (wanted,)
    return tuple(columns.find(each, key, where) for each in several)
