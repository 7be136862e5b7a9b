"""What is asked for: prompts from the command line, a pipe or a file, checked line by line."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, InputNotFound, UsageError

LINE_KEYS: dict[str, type] = {"prompt": str, "system": str, "seed": int, "max_new_tokens": int}
"""What a line of a JSONL file may hold, and as what."""


@dataclass(frozen=True)
class Request:
    """One prompt as text, with the settings that it has for itself alone."""

    prompt: str
    where: str
    """File and line, or the option that gave it."""
    system: str | None = None
    seed: int | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Requests:
    """All prompts in their order, and how many blank lines stood between them."""

    items: Sequence[Request]
    blank: int = 0


def read(config: Config, stdin: BinaryIO | None = None) -> Requests:
    """The prompts of `generation.prompts`, else of `generation.prompts_file`, else of a pipe.

    Raises UsageError where there are none or both, InputNotFound for a missing or empty file, and
    DataError with the line for one that cannot be read.
    """
    settings = config.generation
    if settings.prompts and settings.prompts_file is not None:
        raise UsageError(
            "prompts were given twice",
            where="generation.prompts (--prompt), generation.prompts_file (--prompts-file)",
            next="keep one of them",
        )
    if settings.prompts:
        return Requests([Request(text, "--prompt") for text in settings.prompts])
    if settings.prompts_file is not None:
        return _some(_of_file(settings.prompts_file, config), settings.prompts_file)
    return _some(_of_lines(_stdin_lines(stdin), "stdin"), "stdin")


def check(config: Config) -> None:
    """Raises ConfigError for generation settings that contradict one another."""
    settings = config.generation
    given = [name for name in ("choices", "regex", "json_schema") if getattr(settings, name)]
    faults = []
    if settings.system is not None and not settings.chat:
        faults.append(("generation.system needs a chat", "add `--chat`"))
    if len(given) > 1:
        faults.append((f"{' and '.join(given)} cannot hold together", "keep one of them"))
    single = [*given, *(["bad_words"] if settings.bad_words else [])]
    if single and settings.num_beams > 1:
        faults.append((f"{single[0]} cannot be searched with beams", "leave num_beams out"))
    if settings.num_beams > 1 and settings.num_return_sequences > settings.num_beams:
        faults.append(("there are fewer beams than sequences to return", "raise num_beams"))
    if settings.num_return_sequences > 1 and settings.num_beams == 1 and not settings.do_sample:
        faults.append(("without sampling all sequences are the same", "set do_sample or num_beams"))
    if settings.num_beams > 1 and settings.explain:
        faults.append(("explain shows single steps, which beams do not have", "leave one out"))
    if settings.min_new_tokens > settings.max_new_tokens:
        faults.append(("min_new_tokens is above max_new_tokens", "lower it"))
    if faults:
        raise ConfigError(faults[0][0], where="generation", next=faults[0][1])


def _some(requests: Requests, source: str) -> Requests:
    if not requests.items:
        raise InputNotFound(
            f"{source} holds no prompt", where=source, next="give one with --prompt, or a line each"
        )
    return requests


def _stdin_lines(stdin: BinaryIO | None) -> Iterator[str]:
    stdin = stdin or sys.stdin.buffer
    if stdin.isatty():
        raise UsageError(
            "there is no prompt",
            next='give one with --prompt "...", a file with --prompts-file, or lines in a pipe',
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes cannot share a pipe",
            where="stdin",
            next="put the prompts into a file: --prompts-file",
        )
    for number, line in enumerate(stdin, 1):
        try:
            yield line.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte 0x{line[error.start]:02x} in column {error.start + 1} is not utf-8",
                where=f"stdin:{number}",
                next="convert the text to utf-8",
            ) from error


def _of_lines(lines: Iterator[str], name: str) -> Requests:
    items, blank = [], 0
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            items.append(Request(text, f"{name}:{number}"))
        else:
            blank += 1
    return Requests(items, blank)


def _of_file(path: str, config: Config) -> Requests:
    # Imported here: what reads tables takes longer to load than a short prompt to answer.
    from llmkit.data import reading, sources, tables

    key = "generation.prompts_file"
    found = sources.find([path], key)
    if len(found) != 1:
        raise UsageError(f"{path} is {len(found)} files", where=key, next="name one file")
    column = config.data.text_column
    data = config.data.model_copy(update={"text_column": "prompt" if column is None else column})
    how = reading.Reading(data, lambda amount: None)
    if found[0].format == "txt":
        return _of_lines(reading.lines(found[0], how), path)
    if found[0].format == "jsonl":
        return _of_jsonl(reading.lines(found[0], how), path)
    texts = enumerate(tables.texts(found[0], how), 1)
    return Requests([Request(text, f"{path} row {number}") for number, text in texts])


def _of_jsonl(lines: Iterator[str], path: str) -> Requests:
    items, blank = [], 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            items.append(_of_json(line, f"{path}:{number}"))
        else:
            blank += 1
    return Requests(items, blank)


def _of_json(line: str, where: str) -> Request:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"this line is not JSON: {error}", where=where, next="each line is one JSON object"
        ) from error
    if not isinstance(row, dict) or "prompt" not in row:
        raise DataError(
            "this line has no prompt", where=where, next='write it as {"prompt": "..."}'
        )
    for key, value in row.items():
        _check_value(key, value, where)
    return Request(where=where, **row)


def _check_value(key: str, value: Any, where: str) -> None:
    kind = LINE_KEYS.get(key)
    if kind is None:
        near = difflib.get_close_matches(key, LINE_KEYS, n=1)
        raise DataError(
            f"this line has an unknown key {key!r}"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            where=where,
            next=f"a line takes {', '.join(LINE_KEYS)}",
        )
    least = 1 if key == "max_new_tokens" else 0
    if type(value) is not kind or (isinstance(value, int) and value < least):
        wanted = f"a whole number of at least {least}" if kind is int else "text"
        raise DataError(f"{key!r} of this line should be {wanted}", where=where, next="correct it")
