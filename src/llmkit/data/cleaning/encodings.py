"""The encoding of a file: UTF-8, else one that is detected from the lines that are not UTF-8."""

from __future__ import annotations

import codecs
from dataclasses import replace
from typing import NamedTuple

from llmkit.config.schema import DataConfig
from llmkit.data.cleaning.language import language_of
from llmkit.data.readers.decode import raw
from llmkit.data.readers.files import DataSet, Source

_SAMPLE = 1 << 15  # bytes of lines that are not UTF-8, which a detector reads
_CHUNK = 1 << 16
_LATIN = {
    "cp1250", "cp1252", "cp1254", "cp1257", "cp775", "cp850", "cp852", "cp857", "cp858",
    "hp_roman8", "iso8859_1", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_9", "iso8859_10",
    "iso8859_13", "iso8859_14", "iso8859_15", "iso8859_16", "latin_1",
}  # fmt: skip
"""Code pages for Latin letters. They differ in a few letters, so short samples fit several."""

_EASTERN = ("pl", "cs", "sk", "sl", "hr", "bs", "hu", "ro", "sq")
_MADE_FOR = {
    "cp1250": _EASTERN, "iso8859_2": _EASTERN, "cp1257": ("lt", "lv"), "cp1254": ("tr", "az")
}  # fmt: skip
"""The languages of the code pages other than cp1252."""


class FileEncoding(NamedTuple):
    """How a file is decoded."""

    source: Source | None
    """The source with its encoding; None if no encoding was found."""
    encoding: str
    """`utf-8`, or what was detected."""
    lenient: bool = False
    """Whether a few bytes are not UTF-8, and are replaced."""


class Utf8Scan:
    """Counts the valid and invalid UTF-8 in a stream."""

    def __init__(self) -> None:
        self.invalid = self.characters = 0
        """Number of bytes that are not UTF-8, and of characters that take several bytes."""
        self.sample = bytearray()
        """Lines that are not UTF-8."""
        self._held = b""

    def add(self, chunk: bytes, final: bool = False) -> None:
        """Read the next bytes."""
        chunk = self._held + chunk
        self._held = b""
        if chunk.isascii():
            return
        if not final:
            whole = chunk.rfind(b"\n") + 1 or len(chunk)
            if whole < len(chunk) or len(chunk) < _CHUNK:
                chunk, self._held = chunk[:whole], chunk[whole:]
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            for line in chunk.split(b"\n"):
                self._add_line(line)
            return
        self.characters += len(chunk) and _wide(text)

    def _add_line(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        marks = text.count("\ufffd")
        self.invalid += marks
        self.characters += _wide(text) - marks
        if marks and len(self.sample) < _SAMPLE:
            self.sample += line[:_SAMPLE] + b"\n"


def _wide(text: str) -> int:
    """The number of characters beyond ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))


def encoding_of(source: Source, data: DataConfig) -> FileEncoding:
    """The encoding of a source. A byte order mark and `data.encoding` decide; else it is UTF-8,
    leniently if most that is not ASCII is; else what a detector finds in the other lines, if the
    whole file decodes with it."""
    named = source.encoding or data.encoding
    fixed = source.format in ("parquet", "hub") or isinstance(source.path, DataSet)
    if fixed or data.errors != "strict" or codecs.lookup(named).name != "utf-8":
        return FileEncoding(source, named)
    scan = Utf8Scan()
    for chunk in raw(source, lambda n: None):
        scan.add(chunk)
    scan.add(b"", final=True)
    if not scan.invalid:
        return FileEncoding(source, "utf-8")
    if scan.characters > scan.invalid:
        return FileEncoding(source, "utf-8", lenient=True)
    found = _detected(bytes(scan.sample))
    if found and _decodes(source, found):
        return FileEncoding(replace(source, encoding=found), found)
    return FileEncoding(None, "unknown")


def _detected(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is None:
        return ""
    if best.encoding in _LATIN:
        return _latin(sample)
    return codecs.lookup(best.encoding).name


def _latin(sample: bytes) -> str:
    """The Latin code page for the language of the sample; if several fit, the one that decodes the
    most letters."""
    texts = {name: sample.decode(name, "replace") for name in _MADE_FOR}
    fitting = [name for name, text in texts.items() if language_of(text) in _MADE_FOR[name]]
    return max(fitting, key=lambda name: sum(map(str.isalpha, texts[name])), default="cp1252")


def _decodes(source: Source, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    try:
        for chunk in raw(source, lambda n: None):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
