"""Show samples on a terminal: streamed text, the candidates for each token, and samples during
training."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmkit.errors import WriteError

BETWEEN = "\n---\n"
"""Separator between two texts."""

_INDENT = 10
"""Columns before the texts of a sample, for their names."""

_LINES = 4
"""Maximum number of lines of a text of a sample on the screen; the run keeps all of it."""

_NAMES = {"continuation": "model", "response": "model", "prediction": "model"}
"""Names on the screen, where they are shorter than the key."""


def put(text: str) -> None:
    """Writes to stdout and flushes it; raises BrokenPipeError if the pipe is closed.

    Control characters are replaced on a terminal, which would interpret them, but not in a pipe.
    """
    try:
        sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Flushing the buffer would fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WriteError(
            f"cannot write to stdout: {error.strerror}",
            kept="what was printed before",
            next="write to a file with --output: such a job can be resumed",
        ) from error


def harmless(text: str) -> str:
    """The text without control characters; joiners and direction marks are kept."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def steps_table(record: Mapping[str, Any]) -> str:
    """A table of the most likely tokens at each step of a sample's record, with the model's
    probability and the one after the settings; empty if they were not requested."""
    if "steps" not in record:
        return ""
    table = _plain_table("step", "token", "p", "drawn with", "likeliest")
    for number, step in enumerate(record["steps"], 1):
        likeliest = "  ".join(f"{_quoted(c)} {c['probability']:.3f}" for c in step["likeliest"])
        figures = [f"{step[key]:.3f}" for key in ("probability", "after_settings")]
        table.add_row(str(number), *map(Text, (_quoted(step), *figures, likeliest)))
    return _printed(table)


def masks_table(record: Mapping[str, Any]) -> str:
    """A table of the fillings of each mask in a record, most likely first, with their
    probabilities; empty for the record of a text."""
    if "masks" not in record:
        return ""
    table = _plain_table("mask", "filling", "p")
    for number, mask in enumerate(record["masks"], 1):
        for filling in mask.get("likeliest", [mask]):
            cells = (_quoted(filling), f"{filling['probability']:.3f}")
            table.add_row(str(number), *map(Text, cells))
    return _printed(table)


def _plain_table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _printed(table: Table) -> str:
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def text_sample(sample: Mapping[str, str], console: Console) -> Text:
    """A sample made during training: its prompt and what the model made of it, each after its name,
    folded to the width of a terminal, and shortened."""
    shown = Text()
    for name, text in sample.items():
        lines = list(Text("\n".join(filter(str.strip, harmless(text).splitlines()))).split("\n"))
        if console.is_terminal:
            room = max(1, console.width - _INDENT)
            lines = [part for line in lines for part in line.wrap(console, room)]
        if len(lines) > _LINES:
            lines = [*lines[:_LINES], Text("…")]
        shown.append(
            f"{'' if not shown else chr(10)}  {_NAMES.get(name, name):{_INDENT - 2}}", "dim"
        )
        shown.append(Text("\n" + " " * _INDENT).join(lines))
    return shown


def _quoted(candidate: Mapping[str, Any]) -> str:
    return harmless(repr(candidate["token"]))
