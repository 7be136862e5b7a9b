"""A data set of conversations: read, looked at, and split, ready for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data import conversations, look, soundness, splits
from llmkit.data.conversations import Conversation
from llmkit.data.fingerprints import as_seen
from llmkit.data.labelled import Counts
from llmkit.data.look import Findings
from llmkit.data.parts import Part, Place, many, told
from llmkit.data.roles import resolve_chat_columns
from llmkit.data.sources import Source, Sources
from llmkit.data.splits import Texts
from llmkit.errors import DataError, InputNotFound
from llmkit.progress import Say, Watch

Conversations = Sequence[Conversation]


@dataclass(frozen=True)
class Chats:
    """Conversations to learn from, and those that are held out."""

    data: DataConfig
    """The data section with the columns that were found."""
    train: Conversations
    validation: Conversations
    """Empty if nothing is held out and no validation files are given."""
    report: dict[str, Any]
    """The look at the data, as JSON has it."""


def load_conversations(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Chats:
    """All conversations of a config: read, looked at, and split so that no prompt stands on both
    sides. Texts that the tokenizer, where one is given, reads as the same count as the same.

    Guesses are said, odd rows are warned of. Raises what reading raises, and DataError for empty
    responses.
    """
    train = sources.of("data.train_files")
    if not train:
        raise InputNotFound(
            "data.train_files is not given",
            where="data.train_files",
            next="data.train_files=FILE, a directory, a glob, or hub:NAME",
        )
    data = resolve_chat_columns(train, config.data, say)
    found = {"train": train, "validation": sources.of("data.validation_files")}
    counts = {name: Counts() for name, some in found.items() if some}
    parts = {name: _read(found[name], data, name, counts[name], watch) for name in counts}
    report = _report(parts, counts, tokenizer)
    for warning in report["warnings"]:
        warn(warning)
    if "validation" not in parts:
        wish = data.validation_fraction
        fraction = splits.AUTO_SHARE if wish == "auto" else wish
        parts["train"], parts["validation"] = _split(
            parts["train"], fraction, config.seed, tokenizer
        )
    report["columns"] = {
        name: getattr(data, f"{name}_column")
        for name in ("prompt", "response", "messages")
        if getattr(data, f"{name}_column") is not None
    }
    report["splits"] = {name: {"rows": len(each)} for name, each in parts.items() if each}
    return Chats(data, parts["train"], parts["validation"], report)


def _read(
    found: Sequence[Source], data: DataConfig, name: str, counts: Counts, watch: Watch
) -> list[Conversation]:
    """All conversations of one part; raises DataError where there are none, or empty responses."""
    key = f"data.{name}_files"
    with watch(f"reading {key}", sum(source.n_bytes for source in found)) as advance:
        read = list(conversations.read_conversations(found, data, advance, counts))
    if not read:
        files = ", ".join(str(source.path) for source in found)
        raise DataError(f"{key} has no rows", where=files, next="name files with rows")
    empty = [each for each in read if any(not text.strip() for text in each.responses)]
    if empty:
        rows = many(len(empty), "row")
        raise DataError(
            f"{rows} of {key} with an empty response, from which nothing can be learned",
            where=told(map(_place, empty)),
            next="give them a response, or take them out",
        )
    return read


def _split(
    whole: list[Conversation],
    fraction: float,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None,
) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations to learn from and those held out, drawn by what opens them."""
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
) -> dict[str, Any]:
    """What the rows hold: whole conversations that repeat, and prompts that stand in both parts."""
    whole = {name: _part(name, each, counts, lambda c: c.contents) for name, each in parts.items()}
    opened = {name: _part(name, each, counts, lambda c: c.opening) for name, each in parts.items()}
    for part in (*whole.values(), *opened.values()):
        part.seen = as_seen(part.texts, tokenizer)
    duplicates = [each for each in look.repeats(whole) if each.part == each.first_part]
    overlap = [each for each in look.repeats(opened) if each.part != each.first_part]
    blank = [
        {"split": name, **look.place_of(_place(each))}
        for name, some in parts.items()
        for each in some
        if not any(text.strip() for text in each.opening)
    ]
    findings = Findings(duplicates, overlap, [], [])
    return {
        "rows": len(parts["train"]),
        "turns": sum(len(each.responses) for each in parts["train"]),
        "blank": look.finding(blank),
        "duplicates": look.repeated(duplicates),
        "overlap": look.repeated(overlap),
        "blank_lines": sum(each.blank_lines for each in counts.values()),
        "undecodable": sum(each.undecodable for each in counts.values()),
        "warnings": [*_blank(blank), *_odd(whole, findings)],
    }


def _part(
    name: str,
    some: Conversations,
    counts: dict[str, Counts],
    text: Callable[[Conversation], Texts],
) -> Part:
    """The conversations as the look at labelled rows takes them."""
    places = [_place(each) for each in some]
    return Part(name, [text(each) for each in some], [], places, counts=counts[name])


def _odd(parts: dict[str, Part], findings: Findings) -> Iterator[str]:
    for part in parts.values():
        yield from soundness.odd_rows(part, findings)


def _blank(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if rows:
        places = told((row["file"], row["row"]) for row in rows)
        yield f"{many(len(rows), 'row')} with an empty prompt, kept: {places}"


def _place(each: Conversation) -> Place:
    return each.path, each.number
