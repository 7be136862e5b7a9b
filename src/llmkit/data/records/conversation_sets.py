"""Load the conversations of a config: read, checked and split for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers.files import Source, Sources
from llmkit.data.readers.roles import resolve_chat_columns, resolve_pair_columns
from llmkit.data.records import checks, splits
from llmkit.data.records.conversations import Conversation, read_conversations
from llmkit.data.records.findings import Findings, finding, place_of, repeated, repeats
from llmkit.data.records.parts import (
    Counts,
    Part,
    PartRows,
    Place,
    Read,
    format_places,
    rows_of_files,
    rows_of_parts,
    training_sources,
)
from llmkit.data.records.splits import Texts
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError
from llmkit.progress import Say, Watch
from llmkit.reporting.format import many

_C = TypeVar("_C", bound=Conversation)


@dataclass(frozen=True)
class RowForm(Generic[_C]):
    """How the rows of a task are read from tables."""

    columns: tuple[str, ...]
    """The names of their columns."""
    resolve: Callable[[Sequence[Source], DataConfig, Say], DataConfig]
    """Resolves the columns."""
    read: Callable[[Iterable[Source], DataConfig, Callable[[int], None], Counts], Iterator[_C]]
    skipped: Mapping[str, tuple[str, Callable[[_C], bool]]] = field(default_factory=dict)
    """Names of findings, each in words, with a test of the rows that are skipped for it."""
    prompt: str = "prompt"
    """What the model reads, in words."""
    response: str = "response"
    """What it writes."""
    has_turns: bool = False
    """Whether every turn of the assistant is learned."""


Conversations = Sequence[Conversation]
CHATS = RowForm[Conversation](
    ("prompt", "response", "messages"), resolve_chat_columns, read_conversations, has_turns=True
)


def _read_pairs(
    found: Iterable[Source], data: DataConfig, advance: Callable[[int], None], counts: Counts
) -> Iterator[Conversation]:
    how = data.changed(prompt_column=data.source_column, response_column=data.target_column)
    return read_conversations(found, how, advance, counts)


TEXT_PAIRS = RowForm[Conversation](
    ("source", "target"),
    resolve_pair_columns,
    _read_pairs,
    prompt="source",
    response="target",
    has_turns=True,
)
"""Source and target texts: a prompt and its response each, in other columns."""


@dataclass(frozen=True)
class Chats(Generic[_C]):
    """Conversations for training and validation."""

    data: DataConfig
    """The data section with the columns resolved."""
    train: Sequence[_C]
    validation: Sequence[_C]
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
) -> Chats[Conversation]:
    """Prompts with responses, and chats, or `pairs` of source and target: see `load_form`."""
    return load_form(TEXT_PAIRS if pairs else CHATS, config, sources, watch, say, warn, tokenizer)


def load_form(
    form: RowForm[_C],
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None,
) -> Chats[_C]:
    """Read, check and split all conversations of a config; no prompt is on both sides.

    Texts that the given tokenizer encodes alike count as the same. Guesses are reported, unusual
    rows raise warnings. Raises the errors of reading, and DataError for empty responses.
    """
    data = form.resolve(training_sources(sources)["train"], config.data, say)
    found = rows_of_parts(sources, data, _reader(form, data), watch, say)
    parts = {name: _checked(each, form) for name, each in found.items()}
    counts = {name: each.counts for name, each in found.items()}
    skipped = _skipped(parts, form)
    report = _report(parts, counts, tokenizer, form.prompt)
    if form.has_turns:
        report["turns"] = sum(len(each.responses) for each in parts["train"])
    report |= {name: finding(rows) for name, (_, rows) in skipped.items()}
    report["warnings"] = [*(text for text, rows in skipped.values() if rows), *report["warnings"]]
    for warning in report["warnings"]:
        warn(warning)
    if "validation" not in parts:
        requested = data.validation_fraction
        fraction = splits.AUTO_SHARE if requested == "auto" else requested
        parts["train"], parts["validation"] = _split(
            parts["train"], fraction, config.seed, tokenizer
        )
        if fraction > 0 and not parts["validation"]:
            warn("no row is held out for validation: all rows have the same prompt")
    report["columns"] = {
        name: getattr(data, f"{name}_column")
        for name in form.columns
        if getattr(data, f"{name}_column") is not None
    }
    report["splits"] = {name: {"rows": len(each)} for name, each in parts.items() if each}
    return Chats(data, parts["train"], parts["validation"], report)


def load_test(
    form: RowForm[_C],
    found: Sequence[Source],
    data: DataConfig,
    watch: Watch,
    say: Say,
    warn: Say,
) -> list[_C]:
    """The rows of `data.test_files`, checked like those of training. Raises the errors of
    reading."""
    resolved = form.resolve(found, data, say)
    rows = rows_of_files("test", found, _reader(form, resolved), watch)
    parts, counts = {"test": _checked(rows, form)}, {"test": rows.counts}
    skipped = _skipped(parts, form)
    report = _report(parts, counts, None, form.prompt)
    for warning in (*(text for text, rows in skipped.values() if rows), *report["warnings"]):
        warn(warning)
    return parts["test"]


def _skipped(
    parts: dict[str, list[_C]], form: RowForm[_C]
) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Takes out the rows that are skipped; returns them by the name of the finding, with a warning.
    Raises DataError if none is left."""
    found = {}
    for finding_name, (what, is_skipped) in form.skipped.items():
        rows, warning = [], ""
        for part, some in parts.items():
            places = [_place(each) for each in some if is_skipped(each)]
            rows += [{"split": part, **place_of(place)} for place in places]
            if not places:
                continue
            text = f"{many(len(places), 'row')} of data.{part}_files {what}"
            where = format_places(places)
            if len(places) == len(some):
                raise DataError(f"{text}: no row is left", where=where, next="correct the rows")
            warning += f"{'; ' if warning else ''}{text}, skipped: {where}"
            parts[part] = [each for each in some if not is_skipped(each)]
        found[finding_name] = warning, rows
    return found


def _reader(form: RowForm[_C], data: DataConfig) -> Read[_C]:
    return lambda found, advance, counts: form.read(found, data, advance, counts)


def _checked(rows: PartRows[_C], form: RowForm[_C]) -> list[_C]:
    """All conversations of one part; raises DataError if there are none, or empty responses."""
    key, read = rows.key, list(rows.rows)
    if not read:
        where = ", ".join(rows.paths)
        raise DataError(f"{key} has no rows", where=where, next="name files with rows")
    empty = [each for each in read if any(not text.strip() for text in each.responses)]
    if empty:
        raise DataError(
            f"{many(len(empty), 'row')} of {key} with an empty {form.response}: nothing to learn",
            where=format_places(map(_place, empty)),
            next=f"give them a {form.response}, or remove them",
        )
    return read


def _split(
    whole: list[_C],
    fraction: float,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
) -> tuple[list[_C], list[_C]]:
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
    parts: Mapping[str, Conversations],
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
        "rows": len(next(iter(parts.values()))),
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
