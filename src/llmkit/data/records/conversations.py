"""Read conversations: prompts with responses, or lists of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, tables
from llmkit.data.readers.columns import ColumnNumbers, Columns
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source
from llmkit.data.readers.roles import chat_numbers
from llmkit.data.readers.tables import Table
from llmkit.data.records.parts import Counts
from llmkit.errors import DataError

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


_C = TypeVar("_C", bound=Conversation)

RowReader = tuple[ColumnNumbers, Callable[[Record], _C]]
"""The columns to read, and what makes a row of a record."""


def read_conversations(
    found: Iterable[Source], data: DataConfig, advance: Callable[[int], None], counts: Counts
) -> Iterator[Conversation]:
    """The conversations of tables whose columns are resolved.

    Raises DataError with file and row for broken data, unknown roles, and conversations that do not
    end with the assistant's message.
    """

    def of_table(table: Table, path: str) -> RowReader[Conversation]:
        numbers = chat_numbers(table.columns, data, path)
        return sum(numbers, ()), lambda record: Conversation(
            _turns(record, table.columns, *numbers), path, record.number
        )

    yield from read_tables(found, data, advance, counts, of_table)


def read_tables(
    found: Iterable[Source],
    data: DataConfig,
    advance: Callable[[int], None],
    counts: Counts,
    of_table: Callable[[Table, str], RowReader[_C]],
) -> Iterator[_C]:
    """The rows of all tables; `of_table` gives the columns to read of a table and what makes a row
    of a record. A DataError of a row gets its number."""
    for source in found:
        reading = Reading(data, advance)
        table = tables.open_table(source, reading)
        if len(table.columns):
            columns, row_of = of_table(table, str(source.path))
            for record in table.records(columns):
                if record.values is None:
                    counts.blank_lines += 1
                    continue
                try:
                    yield row_of(record)
                except DataError as fault:
                    raise tables.in_row(fault, record.number) from fault
        counts.undecodable += reading.undecodable
        files.check_unchanged(source)


def _turns(
    record: Record,
    columns: Columns,
    prompt: ColumnNumbers,
    response: ColumnNumbers,
    messages: ColumnNumbers,
) -> tuple[Message, ...]:
    if messages:
        value = tables.field(record, columns, messages[0])
        return checked_turns(read_messages(value, record.where), record.where)
    answer = tables.text_or_empty(record, columns, response[0])
    return Message(USER, prompt_text(record, columns, prompt)), Message(ASSISTANT, answer)


def prompt_text(record: Record, columns: Columns, prompt: ColumnNumbers) -> str:
    """The text of the prompt columns of a row: a task may have no input."""
    parts = [tables.text_or_empty(record, columns, number) for number in prompt]
    return "\n\n".join(part for part in parts if part.strip()) if len(parts) > 1 else parts[0]


def read_messages(value: Any, where: str, what: str = "the messages") -> tuple[Message, ...]:
    """The messages of a cell; raises DataError, which names `what` they are, for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(
            f"{what} of this row are {_shown(value)}, not a list of messages",
            where=where,
            next='each message is {"role": "user", "content": "..."}',
        )
    return tuple(_message(each, number, where) for number, each in enumerate(value, 1))


def checked_turns(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages; raises DataError unless they begin with the user's, apart from system messages,
    and end with the assistant's."""
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
