"""Conversations row by row: prompts with their responses, or lists of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmkit.config.schema import DataConfig
from llmkit.data import sources, tables
from llmkit.data.columns import Columns, Numbers
from llmkit.data.delimited import Record
from llmkit.data.labelled import Counts
from llmkit.data.reading import Reading
from llmkit.data.roles import chat_numbers
from llmkit.data.sources import Source
from llmkit.data.tables import Table
from llmkit.errors import DataError

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


_TEXT_PARTS = ("text", "input_text", "output_text")


class Message(NamedTuple):
    """What one side says in its turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the assistant's."""

    messages: tuple[Message, ...]
    path: str
    number: int
    """Data rows of the file, counted from 1."""

    @property
    def opening(self) -> tuple[str, ...]:
        """What is said before the assistant first speaks."""
        roles = [message.role for message in self.messages]
        return tuple(message.content for message in self.messages[: roles.index(ASSISTANT)])

    @property
    def contents(self) -> tuple[str, ...]:
        """All that is said."""
        return tuple(message.content for message in self.messages)

    @property
    def responses(self) -> tuple[str, ...]:
        """What the assistant says."""
        return tuple(each.content for each in self.messages if each.role == ASSISTANT)


def read_conversations(
    found: Iterable[Source], data: DataConfig, advance: Callable[[int], None], counts: Counts
) -> Iterator[Conversation]:
    """The conversations of tables whose columns are resolved.

    Raises DataError with file and row for what is broken, a role that is not known, and messages
    that do not end with the assistant's.
    """
    for source in found:
        reading = Reading(data, advance)
        table = tables.open_table(source, reading)
        if len(table.columns):
            yield from _rows(table, data, str(source.path), counts)
        counts.undecodable += reading.undecodable
        sources.check_unchanged(source)


def _rows(table: Table, data: DataConfig, path: str, counts: Counts) -> Iterator[Conversation]:
    prompt, response, messages = chat_numbers(table.columns, data, path)
    for record in table.records((*prompt, *response, *messages)):
        if record.values is None:
            counts.blank_lines += 1
            continue
        try:
            said = _said(record, table.columns, prompt, response, messages)
        except DataError as fault:
            raise tables.in_row(fault, record.number) from fault
        yield Conversation(said, path, record.number)


def _said(
    record: Record, columns: Columns, prompt: Numbers, response: Numbers, messages: Numbers
) -> tuple[Message, ...]:
    if messages:
        return _messages(tables.field(record, columns, messages[0]), record.where)
    parts = [tables.text_or_empty(record, columns, number) for number in prompt]
    # A task may come without anything that it is done with.
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
    first = next((each.role for each in messages if each.role != SYSTEM), SYSTEM)
    if first != USER:
        raise DataError(
            "the conversation does not begin with the user: there is nothing to respond to",
            where=where,
            next="begin it with the user's message, or take the row out",
        )
    if messages[-1].role != ASSISTANT:
        raise DataError(
            f"the last message is the {messages[-1].role}'s: there is no response to learn",
            where=where,
            next="end the conversation with the assistant's message, or take the row out",
        )
    return messages


def _message(value: Any, number: int, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(
            f"message {number} is {_shown(value)}, not an object",
            where=where,
            next='each message is {"role": "user", "content": "..."}',
        )
    # Parquet gives each message the keys of all.
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
        content = "".join(_part(each, number, where) for each in content)
    return Message(value["role"], tables.as_text(content, "content", where))


def _part(value: Any, number: int, where: str) -> str:
    """The text of a part of a message, `{"type": "text", "text": "..."}`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("type") in _TEXT_PARTS:
        return tables.as_text(value.get("text"), "text", where)
    kind = repr(value.get("type")) if isinstance(value, dict) else _shown(value)
    raise DataError(
        f"message {number} has a part of type {kind}, and only text can be learned",
        where=where,
        next="take the row out, or give the content as text",
    )


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:60]
