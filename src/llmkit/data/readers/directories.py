"""Which files of a directory are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from llmkit.data.readers.formats import COMPRESSIONS, FORMAT_NAMES

SUFFIXES = tuple(f".{name}" for name in FORMAT_NAMES) + tuple(
    f".{name}.{packed}" for name in FORMAT_NAMES if name != "parquet" for packed in COMPRESSIONS
)
"""The suffixes that a directory is searched for."""

PROSE = ("txt", "text", "md", "markdown", "mdx", "rst", "tex", "org", "adoc")
CODE = (
    "py", "pyi", "js", "jsx", "ts", "tsx", "java", "kt", "scala", "c", "h", "cc", "cpp", "hpp",
    "cs", "go", "rs", "swift", "rb", "php", "pl", "lua", "r", "jl", "hs", "ml", "ex", "erl", "clj",
    "sh", "bash", "sql",
)  # fmt: skip
"""Text that is also read if a directory holds hardly anything in the formats above."""

PAGES = ("html", "htm", "xhtml")
"""Web pages: read from a directory only by a command that extracts their text."""

CLEAN_PAGES = "`llmkit clean clean.html=true` extracts the text of web pages"

SLIVER = 0.1
"""Share of the bytes of a directory below which it counts as holding hardly anything."""

_NAMED = 3

Folders = dict[Path, list[Path]]
"""Searched directories with all their files."""


def files_read(files: Sequence[Path], pages: bool) -> list[Path]:
    """The files of a directory that are read: those with one of SUFFIXES; without tables, and if
    these are less than a tenth of the text, prose and source code too; and web pages."""
    known = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    markup = [path for path in files if pages and is_page(path)]
    if any(".txt" not in path.name.lower() for path in known):
        return sorted([*known, *markup])
    others = [path for path in files if path.suffix[1:].lower() in (*PROSE, *CODE)]
    everything = sorted({*known, *others})
    sufficient = _size(known) >= SLIVER * _size(everything) and known
    return sorted([*(known if sufficient else everything), *markup])


def is_page(path: Path) -> bool:
    """Whether a file has the suffix of a web page."""
    return path.suffix[1:].lower() in PAGES


def skipped_files(folders: Folders, pages: bool) -> tuple[str, bool]:
    """A sentence about the files of directories that are skipped, and whether they are by far the
    larger part; empty if everything is read."""
    sentences, most = [], False
    for path, files in folders.items():
        read = files_read(files, pages)
        if left := sorted({*files} - {*read}):
            size, whole = _size(left), _size(files)
            most = most or whole - size < SLIVER * whole
            sentences.append(
                f"{path}: {len(read):,} of {len(files):,} files are read; skipped: "
                f"{_by_suffix(left)}, {size:,} of {whole:,} bytes"
            )
            if any(map(is_page, left)):
                sentences.append(CLEAN_PAGES)
    return "; ".join(sentences), most


def _by_suffix(files: Sequence[Path]) -> str:
    """Files, formatted for a message: the number per suffix, and a few names."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in files)
    several = ", ".join(f"{number:,} {suffix}" for suffix, number in counts.most_common(8))
    names = ", ".join(path.name for path in files[:_NAMED])
    return f"{several} ({names}{', ...' if len(files) > _NAMED else ''})"


def _size(files: Iterable[Path]) -> int:
    sizes = 0
    for path in files:
        with suppress(OSError):
            sizes += path.stat().st_size
    return sizes
