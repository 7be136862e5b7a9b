"""Read prompts with two responses, of which one is preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.config.schema import DataConfig
from llmkit.data.readers import tables
from llmkit.data.readers.columns import ColumnNumbers, Columns
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source
from llmkit.data.readers.roles import CHOSEN, preference_numbers, resolve_preference_columns
from llmkit.data.readers.tables import Table
from llmkit.data.records import conversations
from llmkit.data.records.conversation_sets import RowForm
from llmkit.data.records.conversations import ASSISTANT, USER, Conversation, Message
from llmkit.data.records.parts import Counts
from llmkit.errors import DataError


@dataclass(frozen=True)
class Preference(Conversation):
    """A conversation that ends with the preferred response, and another response in its place."""

    rejected: tuple[Message, ...]
    """The other conversation, as a whole."""

    @property
    def opening(self) -> tuple[str, ...]:
        """Contents of the messages before the two responses."""
        return tuple(message.content for message in self.messages[:-1])

    @property
    def contents(self) -> tuple[str, ...]:
        """Contents of all messages, and of the other response."""
        return (*super().contents, self.rejected[-1].content)

    @property
    def responses(self) -> tuple[str, ...]:
        """Contents of the assistant's messages, the other response among them."""
        return (*super().responses, self.rejected[-1].content)

    @property
    def shares_prompt(self) -> bool:
        """Whether the two conversations differ in their last message only."""
        return self.messages[:-1] == self.rejected[:-1]


def read_preferences(
    found: Iterable[Source], data: DataConfig, advance: Callable[[int], None], counts: Counts
) -> Iterator[Preference]:
    """The rows of tables whose columns are resolved.

    A response is a text, messages, or a whole conversation, which needs no prompt. Raises DataError
    with file and row for anything else.
    """

    def of_table(table: Table, path: str) -> conversations.RowReader[Preference]:
        numbers = preference_numbers(table.columns, data, path)

        def row_of(record: Record) -> Preference:
            chosen, rejected = _both(record, table.columns, *numbers)
            return Preference(chosen, path, record.number, rejected)

        return sum(numbers, ()), row_of

    yield from conversations.read_tables(found, data, advance, counts, of_table)


PREFERENCES = RowForm[Preference](
    ("prompt", "chosen", "rejected"),
    resolve_preference_columns,
    read_preferences,
    {
        "identical": (
            "whose chosen and rejected responses are the same",
            lambda row: row.messages == row.rejected,
        ),
        "other_prompt": (
            "whose chosen and rejected conversations differ before their last message",
            lambda row: not row.shares_prompt,
        ),
    },
)


def _both(
    record: Record,
    columns: Columns,
    prompt: ColumnNumbers,
    chosen: ColumnNumbers,
    rejected: ColumnNumbers,
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversations with the chosen and with the rejected response."""
    asked = _prompt(record, columns, prompt)
    first, second = (_whole(record, columns, each[0], asked) for each in (chosen, rejected))
    return first, second


def _prompt(record: Record, columns: Columns, prompt: ColumnNumbers) -> tuple[Message, ...]:
    """The messages of the prompt; none without a column for it."""
    if not prompt:
        return ()
    value = tables.field(record, columns, prompt[0])
    if len(prompt) > 1 or value is None or isinstance(value, str):
        return (Message(USER, conversations.prompt_text(record, columns, prompt)),)
    return conversations.read_messages(value, record.where, "the prompt's messages")


def _whole(
    record: Record, columns: Columns, number: int, asked: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The conversation that ends with the response in a column."""
    name, where = columns.address(number), record.where
    said = _response(tables.field(record, columns, number), name, where)
    if said[0].role == ASSISTANT:
        if not asked:
            raise DataError(
                f"{name!r} holds a response alone, and no column has its prompt",
                where=where,
                next="name it with data.prompt_column, or give whole conversations as lists of "
                "messages",
            )
        return conversations.checked_turns((*asked, *said), where)
    said = conversations.checked_turns(said, where)
    # A whole conversation: a prompt beside it repeats a part of it.
    size = len(asked)
    if not any(said[first : first + size] == asked for first in range(len(said) - size)):
        raise DataError(
            f"the conversation in {name!r} does not begin with the prompt of the row",
            where=where,
            next="correct the row, or rename the column of the prompt, which is then not used",
        )
    return said


def _response(value: Any, name: str | int, where: str) -> tuple[Message, ...]:
    if value is not None and not isinstance(value, str):
        return conversations.read_messages(value, where, f"the messages in {name!r}")
    text = "" if value is None else tables.cell_text(value, name, where)
    if text.lstrip().startswith(("[{", "{'role'", '{"role"')) and "role" in text:
        raise DataError(
            f"{name!r} holds messages that were written as text",
            where=where,
            next=f"give the file as .jsonl or .parquet, with lists of messages in {CHOSEN} "
            "and beside it",
        )
    return (Message(ASSISTANT, text),)
