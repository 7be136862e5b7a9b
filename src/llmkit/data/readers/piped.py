"""Read rows from a pipe: text and JSON lines as they arrive, other formats like a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from llmkit.config.schema import DataConfig
from llmkit.data.readers import delimited, formats
from llmkit.data.readers.files import PipedInput
from llmkit.distributed.launcher import n_processes
from llmkit.errors import DataError, UsageError


def refuse_sharing(piped: PipedInput, option: str) -> None:
    """Raises UsageError if several processes would share a pipe; `option` is the alternative."""
    if n_processes() > 1:
        raise UsageError(
            "several processes cannot share a pipe",
            where=piped.name,
            next=f"write the input to a file and name it: {option}",
        )


class Pipe:
    """A pipe whose first line has been read and whose format is known."""

    def __init__(self, piped: PipedInput, data: DataConfig) -> None:
        """Waits for the first line; raises DataError for input that is neither text nor rows."""
        (self.stream, self.name), self.data = piped, data
        self.head = b""
        while (
            b"\n" not in self.head
            and len(self.head) < formats.FIRST_BYTES
            and (more := self._read())
        ):
            self.head += more
        found = formats.recognise(self.head, self.name)
        self.format = self._format(found.format)
        wide = found.encoding not in ("", "utf-8") or formats.is_wide(data.encoding)
        odd = found.compression or wide or found.line_end == "\r"
        self.is_lines = self.format in ("txt", "jsonl") and not odd
        """Whether each line is a complete row that can be processed as soon as it arrives."""

    def groups(self) -> Iterator[list[str]]:
        """The lines, grouped as they arrived, without waiting for more.

        Raises DataError with the line number for bytes that are invalid in the encoding.
        """
        held, number = b"", 0
        for part in chain([self.head], iter(self._read, b"")):
            held += part
            if formats.is_binary(held):
                raise formats.binary(self.name)
            *whole, held = held.split(b"\n")
            if whole:
                yield [self._decoded(line, number + n) for n, line in enumerate(whole, 1)]
                number += len(whole)
        if held:
            yield [self._decoded(held, number + 1)]

    @contextmanager
    def as_file(self) -> Iterator[tuple[Path, DataConfig]]:
        """The whole pipe as a temporary file, and the data section with its format."""
        is_table = self.format in ("csv", "tsv")
        data = self.data.changed(format=self.format) if is_table else self.data
        with tempfile.TemporaryDirectory(prefix="llmkit-") as folder:
            path = Path(folder, self.name)
            with path.open("wb") as file:
                file.write(self.head)
                shutil.copyfileobj(self.stream, file)
            yield path, data

    def _read(self) -> bytes:
        some: bytes = self.stream.read1(formats.FIRST_BYTES)  # type: ignore[attr-defined]
        return some

    def _format(self, recognised: str) -> str:
        if self.data.format not in ("auto", "jsonl") or recognised not in ("txt", "jsonl"):
            return self.data.format if self.data.format not in ("auto", "jsonl") else recognised
        if self.data.format == "jsonl" or recognised == "jsonl":
            return "jsonl"
        lines = self.head.decode(self.data.encoding, "replace").removeprefix("\ufeff").splitlines()
        return delimited.table_format(lines[:1], self.data) or "txt"

    def _decoded(self, line: bytes, number: int) -> str:
        errors = self.data.errors
        try:
            text = line.decode(self.data.encoding, errors)
        except UnicodeDecodeError as fault:
            raise DataError(
                f"byte 0x{line[fault.start]:02x} in column {fault.start + 1} is not "
                f"{self.data.encoding}",
                where=f"{self.name}:{number}",
                next="name the right encoding with data.encoding, or convert the text",
            ) from fault
        return text.removeprefix("\ufeff" if number == 1 else "").removesuffix("\r")
