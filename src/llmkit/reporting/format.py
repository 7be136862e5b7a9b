"""Numbers, durations and text as messages and tables show them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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


def figure_text(value: Any) -> str:
    """A value as people read it: numbers of four digits or more whole, others to four digits."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, int) or (float(value).is_integer() and 1000 <= abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e15 else f"{value:.4g}"


def bounds_text(found: Mapping[str, Any], key: str) -> str:
    """The 95% interval of a figure: `0.7 to 0.9`; empty without one."""
    bounds = bounds_of(found, key)
    return f"{figure_text(bounds[0])} to {figure_text(bounds[1])}" if bounds else ""


def bounds_of(found: Mapping[str, Any], key: str) -> Sequence[float] | None:
    """The 95% interval of a figure; None for one without width, as resampling gives where all
    examples are alike, such as all right: it is not a sign of certainty."""
    bounds: Sequence[float] | None = (found.get("intervals") or {}).get(key)
    return bounds if bounds and None not in bounds and bounds[0] < bounds[1] else None


_FOLDERS = re.compile(r"(?<![\w/:.])(~|\.{0,2})/([^\s/,:;'\"]+/)+")


def without_folders(text: str) -> str:
    """Text with the paths in it shortened to their last part: folders are those of one machine."""
    return _FOLDERS.sub("", text)
