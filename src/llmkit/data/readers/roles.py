"""Find the columns of a table that hold the text, label, prompt, response or messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmkit.config.schema import DataConfig
from llmkit.config.yaml12 import dump
from llmkit.data.readers import delimited, formats, tables
from llmkit.data.readers.columns import (
    LABEL_NAMES,
    TEXT_NAMES,
    ColumnNumbers,
    Columns,
    guess,
    guess_text,
    only_column,
    usual_labels,
)
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import named_format
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.errors import DataError
from llmkit.progress import Say

_SOURCE, _TARGET = "data.source_column", "data.target_column"
TEXT, LABEL, MARKED_WORDS = "data.text_column", "data.label_column", "data.mark_column"
_PROMPT, RESPONSE, MESSAGES = "data.prompt_column", "data.response_column", "data.messages_column"
CHOSEN, REJECTED = "data.chosen_column", "data.rejected_column"

_PROMPTS = frozenset("prompt instruction question query".split())
_RESPONSES = frozenset("response output answer completion reply".split())
_CONVERSATIONS = frozenset("messages conversation conversations".split())
_SOURCES = frozenset("source src article document dialogue text input".split())
_TARGETS = frozenset("target tgt translation summary highlights abstract output".split())
_CHOSEN, _REJECTED = frozenset({"chosen", "preferred"}), frozenset({"rejected", "dispreferred"})
_TASK = ("instruction", "input")
"""The task and its input: two columns that form one prompt."""

_TOKENS = frozenset("tokens words form".split())
_TAGS = frozenset("tags tag ner_tags ner pos_tags pos upos label labels spans entities".split())
_SPANS = frozenset("spans entities".split())
_MARKS = frozenset("predicate predicate_index".split())
TAGGED_NAMES = TEXT_NAMES | _TOKENS | _TAGS
"""Usual names of columns of tagged words."""


def with_header(data: DataConfig, *wanted: Any) -> DataConfig:
    """The data section, which expects a header if a column is given by name."""
    flat = [each for one in wanted for each in (one if isinstance(one, tuple) else (one,))]
    if data.header == "auto" and any(isinstance(each, str) for each in flat):
        return data.changed(header=True)
    return data


def resolve_label_columns(
    found: Sequence[Source], data: DataConfig, say: Say, labelled: bool = True
) -> DataConfig:
    """The data section with the columns resolved, and whether the tables have a header.

    Columns that are not given are guessed from the first table if there is only one candidate,
    and the guess is reported. Otherwise raises DataError with the existing columns.
    """
    # A file too short to detect its format gets that of the first if no name shows another.
    all_plain = all(source.format == "txt" for source in found)
    for source in found:
        table = tables.open_table(source, Reading(data, lambda n_bytes: None), labelled)
        if len(table.columns):
            return resolve_by_table(data, table, source, say, labelled, all_plain)
    return data


def resolve_by_table(
    data: DataConfig, table: Table, source: Source, say: Say, labelled: bool, all_plain: bool
) -> DataConfig:
    """The data section with the columns resolved from one table."""
    columns, where = table.columns, str(source.path)
    if labelled:
        _refuse_tagged(data, columns, source)
    given = (
        columns.find_all(data.text_column, TEXT, where),
        columns.find_all(data.label_column, LABEL, where) if labelled else (),
    )
    text, label = guess(columns, given, lambda: _cells(table)) if labelled else given
    text = text or guess_text(columns, usual_labels(columns))
    for numbers, key, what in ((text, TEXT, "text"), (label, LABEL, "label")):
        if not numbers and (labelled or key == TEXT):
            fault = columns.fault(f"it is not clear which column is the {what}", key, where)
            fault.next += _other_objective(columns) if labelled else ""
            raise fault
    resolved: dict[str, Any] = {"text_column": _named(columns, text)}
    if labelled:
        resolved["label_column"] = _named(columns, label)
    guessed = dict(resolved) if (text, label) != given else {}
    if table.format in ("csv", "tsv"):
        resolved["header"] = columns.names is not None
        if data.header == "auto" and not _by_name(data):
            guessed["header"] = resolved["header"]
    if table.format != delimited.named_format(source, data):
        guessed["format"] = table.format
        if all_plain:
            resolved["format"] = table.format
    _report(guessed, columns, where, say)
    return data.changed(**resolved)


def _other_objective(columns: Columns) -> str:
    """The objective that reads such columns, if they are those of responses."""
    if only_column(columns, _CHOSEN) and only_column(columns, _REJECTED):
        return "; train.objective=preference reads chosen and rejected responses"
    if only_column(columns, _RESPONSES | _CONVERSATIONS):
        return "; train.objective=completion reads prompts with responses, or chats"
    return ""


def _refuse_tagged(data: DataConfig, columns: Columns, source: Source) -> None:
    """Raises DataError for a table that holds tagged words rather than labelled texts."""
    are_tokens = only_column(columns, _TOKENS) and only_column(columns, _TAGS - LABEL_NAMES)
    is_named = data.text_column is not None or data.label_column is not None
    if formats.is_conll_name(str(source.path)) or (are_tokens and not is_named):
        raise DataError(
            f"{source.path} holds words with a tag each, not texts with a label",
            where=str(source.path),
            next="train a tagger with train.objective=token_classification, or name the columns "
            f"of a text and its label with {TEXT} and {LABEL}",
        )


def _report(found: dict[str, Any], columns: Columns, where: str, say: Say) -> None:
    """Report guessed keys."""
    if found:
        keys = ", ".join(f"data.{name}={dump(value)}" for name, value in found.items())
        say(f"{where}: found {keys}; the columns are {columns}")


def _by_name(data: DataConfig) -> bool:
    """Whether a column is given by name, which requires a header."""
    return any(isinstance(each, str) for each in delimited.wanted(data))


def _named(columns: Columns, numbers: Sequence[int]) -> Any:
    named = tuple(columns.label(number) for number in numbers)
    return named if len(named) > 1 else next(iter(named), None)


def _cells(table: Table) -> list[list[str]]:
    """The first rows as lists of strings."""
    rows = [record.values or () for record in table.sample()]
    return [list(map(str, row.values() if isinstance(row, dict) else row)) for row in rows]


def resolve_chat_columns(found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
    """The data section with the columns of the tables resolved.

    Columns that are not given are guessed from the first table if there is only one candidate,
    and the guess is reported. Otherwise raises DataError with the existing columns.
    """
    return _resolved(found, data, ("prompt", "response", "messages"), _chat_roles, say)


def resolve_preference_columns(found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
    """The same for prompts with a chosen and a rejected response."""
    return _resolved(found, data, ("prompt", "chosen", "rejected"), _preference_roles, say)


def _resolved(
    found: Sequence[Source],
    data: DataConfig,
    names: Sequence[str],
    roles_of: Callable[[DataConfig, Columns, str], dict[str, Any]],
    say: Say,
) -> DataConfig:
    data = with_header(data, *(getattr(data, f"{name}_column") for name in names))
    for source in found:
        columns = _columns(source, data)
        if not len(columns):
            continue
        resolved = roles_of(data, columns, str(source.path))
        guessed = {name: value for name, value in resolved.items() if getattr(data, name) is None}
        _report(guessed, columns, str(source.path), say)
        header = {} if columns.keyed else {"header": columns.names is not None}
        return data.changed(**{**resolved, **header})
    return data


def chat_numbers(
    columns: Columns, data: DataConfig, where: str
) -> tuple[ColumnNumbers, ColumnNumbers, ColumnNumbers]:
    """The prompt, response and messages columns of a table that the config names."""
    return (
        columns.find_all(data.prompt_column, _PROMPT, where),
        columns.find_all(data.response_column, RESPONSE, where),
        columns.find_all(data.messages_column, MESSAGES, where),
    )


def preference_numbers(
    columns: Columns, data: DataConfig, where: str
) -> tuple[ColumnNumbers, ColumnNumbers, ColumnNumbers]:
    """The prompt, chosen and rejected columns of a table that the config names."""
    return (
        columns.find_all(data.prompt_column, _PROMPT, where),
        columns.find_all(data.chosen_column, CHOSEN, where),
        columns.find_all(data.rejected_column, REJECTED, where),
    )


def _preference_roles(data: DataConfig, columns: Columns, where: str) -> dict[str, Any]:
    """The columns, given or guessed; conversations hold their prompt, and need no column for it."""
    prompt, chosen, rejected = preference_numbers(columns, data, where)
    chosen = chosen or only_column(columns, _CHOSEN)
    rejected = rejected or only_column(columns, _REJECTED)
    for numbers, key in ((chosen, CHOSEN), (rejected, REJECTED)):
        if not numbers:
            what = "the " + key.removeprefix("data.").replace("_column", " response")
            raise columns.fault(f"it is not clear which column is {what}", key, where)
    found: dict[str, Any] = {
        "chosen_column": columns.label(chosen[0]),
        "rejected_column": columns.label(rejected[0]),
    }
    asked = prompt or _guess_prompt(columns)
    return {"prompt_column": _named(columns, asked), **found} if asked else found


def _columns(source: Source, data: DataConfig) -> Columns:
    if named_format(source, data) == "txt":
        raise DataError(
            "a plain text file has no columns for prompts and responses",
            where=str(source.path),
            next="give them as .csv, .tsv, .jsonl or .parquet, or set data.format",
        )
    return tables.open_table(source, Reading(data, lambda n_bytes: None)).columns


def _chat_roles(data: DataConfig, columns: Columns, where: str) -> dict[str, Any]:
    """The columns, given or guessed, by config key."""
    prompt, response, messages = chat_numbers(columns, data, where)
    if messages:
        return {"messages_column": columns.label(messages[0])}
    guessed = prompt or _guess_prompt(columns), response or only_column(columns, _RESPONSES)
    conversations = only_column(columns, _CONVERSATIONS)
    if conversations and not (prompt or response):
        if all(guessed):
            raise columns.fault("the table has both conversations and prompts", MESSAGES, where)
        return {"messages_column": columns.label(conversations[0])}
    for found, key, what in zip(guessed, (_PROMPT, RESPONSE), ("prompt", "response"), strict=True):
        if not found:
            raise columns.fault(f"it is not clear which column is the {what}", key, where)
    return {
        "prompt_column": _named(columns, guessed[0]),
        "response_column": columns.label(guessed[1][0]),
    }


def _guess_prompt(columns: Columns) -> ColumnNumbers:
    """The prompt column, or the two of a task, if there is only one candidate."""
    names = [name.strip().lower() for name in columns.names or ()]
    if all(names.count(name) == 1 for name in _TASK) and not _PROMPTS & {*names} - {*_TASK}:
        return tuple(names.index(name) for name in _TASK)
    return only_column(columns, _PROMPTS)


def resolve_pair_columns(
    found: Sequence[Source], data: DataConfig, say: Say, targets: bool = True
) -> DataConfig:
    """The data section with the columns of source and target texts resolved; without `targets`,
    that of source texts.

    Columns that are not given are guessed from the first table: by common names, or, of two
    columns, the first is the source. Otherwise raises DataError with the existing columns.
    """
    data = with_header(data, data.source_column, data.target_column)
    for source in found:
        columns, where = _columns(source, data), str(source.path)
        if not len(columns):
            continue
        given = _pair_numbers(columns, data, where, targets)
        resolved = {}
        for name, numbers in zip(("source", "target"), given, strict=False):
            if not numbers:
                key = f"data.{name}_column"
                raise columns.fault(f"it is not clear which column is the {name}", key, where)
            resolved[f"{name}_column"] = columns.label(numbers[0])
        guessed = {name: value for name, value in resolved.items() if getattr(data, name) is None}
        _report(guessed, columns, where, say)
        header = {} if columns.keyed else {"header": columns.names is not None}
        return data.changed(**resolved, **header)
    return data


def _pair_numbers(
    columns: Columns, data: DataConfig, where: str, targets: bool
) -> list[ColumnNumbers]:
    """The source column and, if there are targets, the target column, given or guessed; empty where
    it is not clear."""
    source = columns.find_all(data.source_column, _SOURCE, where)
    target = columns.find_all(data.target_column, _TARGET, where) if targets else ()
    source = source or only_column(columns, _SOURCES, without=target)
    target = target or (only_column(columns, _TARGETS, without=source) if targets else ())
    rest = [(n,) for n in range(len(columns)) if n not in (*source, *target)]
    if len(columns) == 1 + targets:
        source = source or rest.pop(0)
        target = target or (rest.pop() if targets else ())
    return [source, target] if targets else [source]


def resolve_tag_columns(
    table: Table, where: str, data: DataConfig, say: Say, labelled: bool = True
) -> DataConfig:
    """The data section with the columns of tagged words resolved from one table.

    Of CoNLL, the first column holds the words and the last one the tags, or those of CoNLL-U; of
    other tables, columns are recognised by their names. A guess is reported; raises DataError with
    the existing columns if there is none.
    """
    columns = table.columns
    text = columns.find_all(data.text_column, TEXT, where)
    label = columns.find_all(data.label_column, LABEL, where) if labelled else ()
    mark = columns.find_all(data.mark_column, MARKED_WORDS, where)
    given = (text, label, mark)
    label = label or (_guess_tags(table, text) if labelled else ())
    text = text or _guess_words(table, label)
    mark = mark or only_column(columns, _MARKS)
    if len(text) != 1:
        raise columns.fault("it is not clear which column has the text or tokens", TEXT, where)
    if labelled and (len(label) != 1 or label == text):
        raise columns.fault("it is not clear which column has the tags or spans", LABEL, where)
    several = {"text_column": text, "label_column": label, "mark_column": mark}
    resolved: dict[str, Any] = {
        name: columns.label(numbers[0]) for name, numbers in several.items() if numbers
    }
    _report(resolved if (text, label, mark) != given else {}, columns, where, say)
    if table.format in ("csv", "tsv"):
        resolved["header"] = columns.names is not None
    return data.changed(**resolved)


def resolve_answer_columns(
    table: Table, where: str, data: DataConfig, say: Say, labelled: bool = True
) -> DataConfig:
    """The data section with the columns of questions, contexts and answers resolved from one table,
    by their usual names; raises DataError with the existing columns if they are not clear."""
    columns = table.columns
    text = columns.find_all(data.text_column, TEXT, where)
    label = columns.find_all(data.label_column, LABEL, where) if labelled else ()
    given = (text, label)
    asked, context = only_column(columns, {"question"}), only_column(columns, {"context"})
    text = text or (*asked, *context)
    if len(text) != 2:
        what = "it is not clear which columns are the question and the context"
        raise columns.fault(what, TEXT, where)
    if labelled and not label:
        start = only_column(columns, {"answer_start"})
        label = only_column(columns, {"answers"})
        label = label or (*only_column(columns, {"answer", "answer_text"}), *start)
        if not label or label == start:
            raise columns.fault("it is not clear which column has the answers", LABEL, where)
    resolved = {"text_column": _named(columns, text), "label_column": _named(columns, label)}
    resolved = {name: value for name, value in resolved.items() if value is not None}
    _report(resolved if (text, label) != given else {}, columns, where, say)
    if table.format in ("csv", "tsv"):
        resolved["header"] = columns.names is not None
    return data.changed(**resolved)


def _guess_tags(table: Table, text: ColumnNumbers) -> ColumnNumbers:
    """The last column of CoNLL, that of parts of speech of CoNLL-U, or one with a usual name."""
    if table.format != "conll":
        return only_column(table.columns, _TAGS, without=text)
    return only_column(table.columns, {"upos"}) or (len(table.columns) - 1,)


def _guess_words(table: Table, label: ColumnNumbers) -> ColumnNumbers:
    """The first column of CoNLL, or that of tokens, or of a text, which spans belong to."""
    columns = table.columns
    if table.format == "conll":
        return only_column(columns, _TOKENS) or (0,)
    tokens = only_column(columns, _TOKENS, without=label)
    text = only_column(columns, TEXT_NAMES, without=label)
    has_spans = bool(label) and str(columns.label(label[0])).strip().lower() in _SPANS
    return (text or tokens) if has_spans else (tokens or text or guess_text(columns, label))
