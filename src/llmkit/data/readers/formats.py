"""Detect the format of a file or pipe by its first bytes and its name, for every command."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import PurePath
from typing import NamedTuple

from llmkit.errors import DataError

FIRST_BYTES = 1 << 16
"""Number of bytes that suffice to recognise a format."""

COMPRESSIONS = ("gz", "zst")
FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
FORMAT_NAMES = {**{name: name for name in FORMATS}, "ndjson": "jsonl", "jsonlines": "jsonl"}
"""Formats by file suffix."""

CONLL_SUFFIXES = ("conll", "conllu", "conll03", "bio", "bmes", "iob", "iob2", "ner")
"""Suffixes of CoNLL files, which only taggers read."""

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SHEET = "export the sheet as CSV"
_UNPACK = "unpack it and name the files, or compress each file with gzip or zstd"
_FOREIGN = (
    (b"%PDF", "a PDF document", "extract its text: `pdftotext FILE`"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc or .xls)", f"save it as text, or {_SHEET}"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF", "an HDF5 file", "write its rows as Parquet or CSV"),
    (b"\x93NUMPY", "a NumPy array", "write its rows as Parquet or CSV"),
    (b"GGUF", "a GGUF model", "name text or rows; models go to --model"),
    (b"\x89PNG", "a picture", "name text or rows"),
    (b"\xff\xd8\xff", "a picture", "name text or rows"),
    (b"\x7fELF", "a program", "name text or rows"),
)
_ZIPPED = (
    ("xl/", "an Excel workbook", _SHEET),
    ("word/", "a Word document", "save it as plain text"),
    ("ppt/", "a PowerPoint document", "save it as plain text"),
    ("content.xml", "an OpenDocument file", f"save it as plain text, or {_SHEET}"),
    ("META-INF/container.xml", "an EPUB book", "convert it to plain text"),
    ("data.pkl", "a PyTorch checkpoint", "name text or rows; models go to --model"),
    (".npy", "a NumPy archive", "write its rows as Parquet or CSV"),
)
_KEY = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:')
_CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\b\x1a\x1b"})
_WIDE = re.compile(r"utf[-_]?(16|32|7)|u(16|32)|cp(037|500|875|1026|1140)", re.IGNORECASE)


class Recognised(NamedTuple):
    """How to read the bytes of a file or pipe."""

    format: str
    """One of FORMATS, or `json` for a list of objects or objects that span lines."""
    compression: str
    """One of COMPRESSIONS, or empty."""
    encoding: str
    """The encoding named by the byte order mark; empty without one."""
    line_end: str
    r"""`\n`, or `\r` if no line has another end."""


def recognise(head: bytes, name: str) -> Recognised:
    """The format of a file or pipe with this name that begins with these bytes.

    Content decides where it is unambiguous: Parquet, gzip and zstd by their magic bytes, Unicode by
    its byte order mark, JSON by its objects. Otherwise the suffix does, and an unknown one is plain
    text. Raises DataError, with a way to convert the file, if it holds neither text nor rows.
    """
    suffixes = [suffix[1:].lower() for suffix in PurePath(name).suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    named = FORMAT_NAMES.get(suffixes[-1], suffixes[-1]) if suffixes else "txt"
    _refuse_foreign(head, name)
    if head.startswith(_PARQUET):
        return Recognised("parquet", "", "", "\n")
    compression = "gz" if head.startswith(_GZIP) else "zst" if head.startswith(_ZSTD) else ""
    if packed and not compression and is_binary(head):
        compression = packed  # damaged: reading it says how
    if compression:
        head = _unpacked(head, compression)
        _refuse_foreign(head, name)
        if head.startswith(_PARQUET):
            raise _refused(name, "a Parquet file inside gzip or zstd", "unpack it")
    encoding = _encoding(head)
    text = head.decode(encoding or "utf-8", "replace").removeprefix("\ufeff")
    line_end = "\r" if "\n" not in text and "\r" in text.rstrip("\r") else "\n"
    format = _of_text(text.replace("\r", "\n"), named, len(head) < FIRST_BYTES)
    return Recognised(format, compression, encoding, line_end)


def is_conll_name(name: str) -> bool:
    """Whether a file is named as CoNLL."""
    suffixes = [suffix[1:].lower() for suffix in PurePath(name).suffixes]
    return any(suffix in CONLL_SUFFIXES for suffix in suffixes[-2:])


def is_binary(head: bytes, encoding: str = "utf-8") -> bool:
    """Whether bytes in this encoding have more control characters than text ever has."""
    some = head[:4096]
    if is_wide(encoding):
        return False
    return len(some) - len(some.translate(None, _CONTROL)) > max(32, len(some) // 20)


def is_wide(encoding: str) -> bool:
    """Whether an encoding maps ASCII characters to other bytes than ASCII does."""
    return bool(_WIDE.match(encoding))


def binary(name: str) -> DataError:
    """The error for a file that is not text."""
    return _refused(name, "binary data, not text", "name text files or tables")


def is_json_object(line: str) -> bool:
    """Whether a line is one non-empty JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value)


def _of_text(text: str, named: str, whole: bool) -> str:
    """The format of a text by its beginning; `named` is the format of its suffix."""
    plain = named if named in FORMATS else "txt"
    begin = text.lstrip()
    if begin.startswith("{"):
        if _are_objects(begin, whole):
            return "json" if named == "json" and "\n" not in begin.rstrip() else "jsonl"
        if _KEY.match(begin) and plain in ("txt", "jsonl") and _spans_lines(begin):
            return "json"
    if begin.startswith("[") and begin[1:].lstrip().startswith("{") and '"' in begin:
        return "json"
    return "json" if named == "json" else plain


def _are_objects(text: str, whole: bool) -> bool:
    """Whether lines are JSON objects; a few may be broken, which the reader reports later."""
    lines = text.split("\n")
    if len(lines) > 1 and not whole:
        lines.pop()
    some = [line for line in lines if line.strip()][:50]
    if len(some) == 1 and not whole:
        return bool(_KEY.match(some[0]))  # longer than the bytes read
    return is_json_object(some[0]) and 2 * sum(map(is_json_object, some)) > len(some)


def _spans_lines(text: str) -> bool:
    """Whether the text begins with a JSON object that does not end in its first line."""
    first = text.partition("\n")[0]
    try:
        json.loads(first)
    except ValueError:
        return _KEY.fullmatch(first.strip()) is not None or first.strip() == "{"
    return False


def _encoding(head: bytes) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[:4096:2].count(0), head[1:4096:2].count(0)
    half = len(head[:4096]) // 2
    if half and max(even, odd) > 0.4 * half and min(even, odd) < 0.05 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return ""


def _unpacked(head: bytes, compression: str) -> bytes:
    """The unpacked first bytes of a compressed file; fewer if it is damaged."""
    import pyarrow as pa

    whole = b""
    try:
        name = {"gz": "gzip", "zst": "zstd"}[compression]
        with pa.CompressedInputStream(pa.BufferReader(head), name) as stream:
            while len(whole) < FIRST_BYTES and (some := stream.read(4096)):
                whole += some
    except OSError:
        pass  # the head ends inside a block
    return whole


def _refuse_foreign(head: bytes, name: str) -> None:
    if head.startswith(b"PK\x03\x04"):
        raise _refused(name, *_zipped(head))
    for magic, what, way in _FOREIGN:
        if head.startswith(magic):
            raise _refused(name, what, way.replace("FILE", PurePath(name).name))
    if head[257:262] == b"ustar":
        raise _refused(name, "a tar archive", "unpack it and name the directory")
    if re.match(rb"\x80[\x02-\x05].", head):
        raise _refused(name, "a Python pickle", "write its rows as Parquet or CSV")


def _zipped(head: bytes) -> tuple[str, str]:
    for sign, what, way in _ZIPPED:
        if sign.encode() in head:
            return what, way
    return "a zip archive", _UNPACK


def _refused(name: str, what: str, way: str) -> DataError:
    return DataError(f"{name} is {what}", where=name, next=way)
