"""Numbers, durations and text as messages and tables show them."""

from __future__ import annotations

import re

from rich.cells import cell_len, set_cell_size

_MARKDOWN = re.compile(
    r"[\\`*<>\[\]|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # underscores but for those within a word
    r"|&(?=#?\w+;)|(?<!\S)#|^[-+](?=\s|$)|^-(?=[-\s]*$)|^=(?==*$)"
)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def markdown_text(text: str) -> str:
    """Text in one line, with a backslash before what Markdown would interpret."""
    line = _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
    return _NUMBERED.sub(r"\1\\\2", line)


def heading(key: str) -> str:
    """The key of a figure as a heading shows it."""
    return key.replace("_", " ")


def many(number: int, what: str) -> str:
    """A number with what is counted, in the plural except for 1: `3 rows`."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def printable(text: str) -> str:
    """Replaces control characters, which a terminal would execute."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def within_columns(text: str, columns: int) -> str:
    """The text as far as a terminal shows it in this many columns, with an ellipsis where it is
    cut; East Asian characters take two."""
    if cell_len(text) <= columns:
        return text
    return set_cell_size(text, columns - 1).rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def clock(seconds: float) -> str:
    """Formats seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """Formats a figure in a few characters: 12.3k, 1.25M, 0.0312."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"
