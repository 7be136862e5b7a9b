"""Read, check and split conversations: prompts with responses, or lists of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers import files, tables
from llmkit.data.readers.columns import ColumnNumbers, Columns
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source, Sources
from llmkit.data.readers.roles import (
    chat_numbers,
    resolve_chat_columns,
    resolve_pair_columns,
)
from llmkit.data.readers.tables import Table
from llmkit.data.records import checks, splits
from llmkit.data.records.findings import Findings, finding, place_of, repeated, repeats
from llmkit.data.records.parts import (
    Counts,
    Part,
    PartRows,
    Place,
    format_places,
    rows_of_parts,
    training_sources,
)
from llmkit.data.records.splits import Texts
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError
from llmkit.progress import Advance, Say, Watch
from llmkit.reporting.format import many

_SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


_TEXT_PARTS = ("text", "input_text", "output_text")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A list of messages that ends with the assistant's."""

    messages: tuple[Message, ...]
    path: str
    number: int
    """Number of the data row in its file, counted from 1."""

    @property
    def opening(self) -> tuple[str, ...]:
        """Contents of the messages before the assistant's first."""
        roles = [message.role for message in self.messages]
        return tuple(message.content for message in self.messages[: roles.index(ASSISTANT)])

    @property
    def contents(self) -> tuple[str, ...]:
        """Contents of all messages."""
        return tuple(message.content for message in self.messages)

    @property
    def responses(self) -> tuple[str, ...]:
        """Contents of the assistant's messages."""
        return tuple(each.content for each in self.messages if each.role == ASSISTANT)


def read_conversations(
    found: Iterable[Source], data: DataConfig, advance: Callable[[int], None], counts: Counts
) -> Iterator[Conversation]:
    """The conversations of tables whose columns are resolved.

    Raises DataError with file and row for broken data, unknown roles, and conversations that do not
    end with the assistant's message.
    """
    for source in found:
        reading = Reading(data, advance)
        table = tables.open_table(source, reading)
        if len(table.columns):
            yield from _rows(table, data, str(source.path), counts)
        counts.undecodable += reading.undecodable
        files.check_unchanged(source)


def _rows(table: Table, data: DataConfig, path: str, counts: Counts) -> Iterator[Conversation]:
    prompt, response, messages = chat_numbers(table.columns, data, path)
    for record in table.records((*prompt, *response, *messages)):
        if record.values is None:
            counts.blank_lines += 1
            continue
        try:
            turns = _turns(record, table.columns, prompt, response, messages)
        except DataError as fault:
            raise tables.in_row(fault, record.number) from fault
        yield Conversation(turns, path, record.number)


def _turns(
    record: Record,
    columns: Columns,
    prompt: ColumnNumbers,
    response: ColumnNumbers,
    messages: ColumnNumbers,
) -> tuple[Message, ...]:
    if messages:
        return _messages(tables.field(record, columns, messages[0]), record.where)
    parts = [tables.text_or_empty(record, columns, number) for number in prompt]
    # A task may have no input.
    asked = "\n\n".join(part for part in parts if part.strip()) if len(parts) > 1 else parts[0]
    answer = tables.text_or_empty(record, columns, response[0])
    return Message(USER, asked), Message(ASSISTANT, answer)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(
            f"the messages of this row are {_shown(value)}, not a list of messages",
            where=where,
            next='each message is {"role": "user", "content": "..."}',
        )
    messages = tuple(_message(each, number, where) for number, each in enumerate(value, 1))
    first = next((each.role for each in messages if each.role != _SYSTEM), _SYSTEM)
    if first != USER:
        raise DataError(
            "the conversation does not begin with the user: there is nothing to respond to",
            where=where,
            next="begin it with the user's message, or remove the row",
        )
    if messages[-1].role != ASSISTANT:
        raise DataError(
            f"the last message is the {messages[-1].role}'s: there is no response to learn",
            where=where,
            next="end the conversation with the assistant's message, or remove the row",
        )
    return messages


def _message(value: Any, number: int, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(
            f"message {number} is {_shown(value)}, not an object",
            where=where,
            next='each message is {"role": "user", "content": "..."}',
        )
    # Parquet gives each message the keys of all messages.
    given = {name for name, each in value.items() if each is not None}
    if given != {"role", "content"}:
        raise DataError(
            f"message {number} holds {', '.join(sorted(given)) or 'nothing'}, not role and content",
            where=where,
            next='each message is {"role": "user", "content": "..."}',
        )
    if value["role"] not in ROLES:
        raise DataError(
            f"message {number} has the unknown role {_shown(value['role'])}",
            where=where,
            next=f"a role is one of {', '.join(ROLES)}",
        )
    content = value["content"]
    if isinstance(content, list):
        content = "".join(_text_of_part(each, number, where) for each in content)
    return Message(value["role"], tables.cell_text(content, "content", where))


def _text_of_part(value: Any, number: int, where: str) -> str:
    """The text of a part of a message, `{"type": "text", "text": "..."}`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("type") in _TEXT_PARTS:
        return tables.cell_text(value.get("text"), "text", where)
    kind = repr(value.get("type")) if isinstance(value, dict) else _shown(value)
    raise DataError(
        f"message {number} has a part of type {kind}, and only text can be learned",
        where=where,
        next="remove the row, or give the content as text",
    )


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:60]


Conversations = Sequence[Conversation]


@dataclass(frozen=True)
class Chats:
    """Conversations for training and validation."""

    data: DataConfig
    """The data section with the columns resolved."""
    train: Conversations
    validation: Conversations
    """Empty if nothing is held out and no validation files are given."""
    report: dict[str, Any]
    """The data report, for JSON output."""


def load_conversations(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
    pairs: bool = False,
) -> Chats:
    """Read, check and split all conversations of a config; no prompt is on both sides.

    `pairs` are source and target texts: a prompt and its response each, in other columns. Texts
    that the given tokenizer encodes alike count as the same. Guesses are reported, unusual rows
    raise warnings. Raises the errors of reading, and DataError for empty responses.
    """
    prompt, response = ("source", "target") if pairs else ("prompt", "response")
    resolve = resolve_pair_columns if pairs else resolve_chat_columns
    data = how = resolve(training_sources(sources)["train"], config.data, say)
    if pairs:
        how = data.changed(prompt_column=data.source_column, response_column=data.target_column)

    def read(found: Sequence[Source], advance: Advance, counts: Counts) -> Iterator[Conversation]:
        return read_conversations(found, how, advance, counts)

    found = rows_of_parts(sources, data, read, watch, say)
    parts = {name: _checked(each, response) for name, each in found.items()}
    counts = {name: each.counts for name, each in found.items()}
    report = _report(parts, counts, tokenizer, prompt)
    for warning in report["warnings"]:
        warn(warning)
    if "validation" not in parts:
        requested = data.validation_fraction
        fraction = splits.AUTO_SHARE if requested == "auto" else requested
        parts["train"], parts["validation"] = _split(
            parts["train"], fraction, config.seed, tokenizer
        )
    report["columns"] = {
        name: getattr(data, f"{name}_column")
        for name in (prompt, response, "messages")
        if getattr(data, f"{name}_column") is not None
    }
    report["splits"] = {name: {"rows": len(each)} for name, each in parts.items() if each}
    return Chats(data, parts["train"], parts["validation"], report)


def _checked(rows: PartRows[Conversation], response: str) -> list[Conversation]:
    """All conversations of one part; raises DataError if there are none, or one has an empty
    `response`, by this name."""
    key, read = rows.key, list(rows.rows)
    if not read:
        where = ", ".join(rows.paths)
        raise DataError(f"{key} has no rows", where=where, next="name files with rows")
    empty = [each for each in read if any(not text.strip() for text in each.responses)]
    if empty:
        raise DataError(
            f"{many(len(empty), 'row')} of {key} with an empty {response}: nothing to learn",
            where=format_places(map(_place, empty)),
            next=f"give them a {response}, or remove them",
        )
    return read


def _split(
    whole: list[Conversation],
    fraction: float,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
) -> tuple[list[Conversation], list[Conversation]]:
    """Split conversations into training and validation by their opening messages."""
    strata = np.zeros(len(whole), dtype=np.int64)
    held = np.zeros(len(whole), dtype=np.bool_)
    if fraction > 0:
        openings = [each.opening for each in whole]
        seen = as_seen(openings, tokenizer)
        held = splits.hold_out(openings, strata, fraction, seed, seen)
    kept = [each for each, out in zip(whole, held, strict=True) if not out]
    return kept, [each for each, out in zip(whole, held, strict=True) if out]


def _report(
    parts: dict[str, list[Conversation]],
    counts: dict[str, Counts],
    tokenizer: PreTrainedTokenizerFast | None,
    prompt: str,
) -> dict[str, Any]:
    """The data report: repeated conversations, and prompts that are in both parts."""
    whole = {name: _part(name, each, counts, lambda c: c.contents) for name, each in parts.items()}
    opened = {name: _part(name, each, counts, lambda c: c.opening) for name, each in parts.items()}
    for part in (*whole.values(), *opened.values()):
        part.seen = as_seen(part.texts, tokenizer)
    duplicates = [each for each in repeats(whole) if each.part == each.first_part]
    overlap = [each for each in repeats(opened) if each.part != each.first_part]
    blank = [
        {"split": name, **place_of(_place(each))}
        for name, some in parts.items()
        for each in some
        if not any(text.strip() for text in each.opening)
    ]
    findings = Findings(duplicates, overlap, [], [])
    return {
        "rows": len(parts["train"]),
        "turns": sum(len(each.responses) for each in parts["train"]),
        "blank": finding(blank),
        "duplicates": repeated(duplicates),
        "overlap": repeated(overlap),
        "blank_lines": sum(each.blank_lines for each in counts.values()),
        "undecodable": sum(each.undecodable for each in counts.values()),
        "warnings": [*_blank(blank, prompt), *_odd(whole, findings)],
    }


def _part(
    name: str,
    some: Conversations,
    counts: dict[str, Counts],
    text: Callable[[Conversation], Texts],
) -> Part:
    """The conversations in the form of labelled rows, for `find_unusual_rows`."""
    places = [_place(each) for each in some]
    return Part(name, [text(each) for each in some], [], places, counts=counts[name])


def _odd(parts: dict[str, Part], findings: Findings) -> Iterator[str]:
    for part in parts.values():
        yield from checks.odd_rows(part, findings)


def _blank(rows: Sequence[dict[str, Any]], prompt: str) -> Iterator[str]:
    if rows:
        places = format_places((row["file"], row["row"]) for row in rows)
        yield f"{many(len(rows), 'row')} with an empty {prompt}, kept: {places}"


def _place(each: Conversation) -> Place:
    return each.path, each.number
