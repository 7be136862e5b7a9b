"""YAML by the core rules of its version 1.2, with the place of every key.

PyYAML reads YAML 1.1, where `3e-4` is text, `no` is false, `010` is eight, and a repeated key wins
in silence. Only its parser is used here: it yields events, and no object is ever built from a tag.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmkit.config.scalars import dump, resolve
from llmkit.errors import ConfigError, InputNotFound

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 16

KeyPath = tuple[str, ...]

_CONFIG_IS_YAML = (
    "CONFIG is a YAML file with lines such as `train.max_steps: 100`; "
    "text to train on is given with `--text PATH`"
)
_HOW_TO_WRITE = (
    "indent with spaces, put a space after each `key:`, and quote text that holds `: ` or ` #` "
    "or begins with one of []{}&*!|>%@`"
)


@dataclass(frozen=True)
class Mark:
    """Where a key stands, and its value as it was written there."""

    line: int
    text: str


@dataclass(frozen=True)
class Repeat:
    """A key that stands twice in one mapping."""

    path: KeyPath
    line: int
    first_line: int


@dataclass(frozen=True)
class Document:
    """What a YAML file says: its values, the mark of each key, and the keys that stand twice."""

    value: dict[str, Any]
    marks: dict[KeyPath, Mark]
    repeats: list[Repeat]


class _RefusedError(Exception):
    """What is wrong in a text, in which line (from 1), and what to do."""

    def __init__(self, what: str, line: int, next: str) -> None:
        super().__init__(what)
        self.what, self.line, self.next = what, line, next


def read(path: Path) -> Document:
    """Reads a file that holds one mapping; its keys are text, as in JSON.

    Raises InputNotFound for a missing file or a directory, and ConfigError for everything that is
    not plain YAML: tags, aliases, several documents, more than MAX_BYTES, MAX_VALUES or MAX_DEPTH.
    """
    text = _text_of(path)
    reader = _Reader()
    try:
        value = reader.document(text)
        if not isinstance(value, dict):
            found = "is empty" if value is None else "does not hold keys with values"
            raise _RefusedError(f"the config {found}", 1, _CONFIG_IS_YAML)
    except _RefusedError as fault:
        raise ConfigError(fault.what, where=f"{path}:{fault.line}", next=fault.next) from None
    return Document(value, reader.marks, reader.repeats)


def parse(text: str) -> Any:
    """The value that a line of YAML stands for; raises ValueError with a readable reason."""
    reader = _Reader()
    try:
        value = reader.document(text)
    except _RefusedError as fault:
        raise ValueError(f"{fault.what}; {fault.next}") from None
    if reader.repeats:
        raise ValueError(f"the key `{reader.repeats[0].path[-1]}` stands twice; keep one")
    if "#" in text[reader.end :]:
        raise ValueError("`#` begins a comment in YAML; quote the value to keep it")
    return value


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _missing(path) from None
    except IsADirectoryError:
        what = "CONFIG is a directory"
        raise InputNotFound(what, where=str(path), next=_CONFIG_IS_YAML) from None
    except (OSError, ValueError) as error:
        raise InputNotFound(f"cannot read the config: {error}", where=str(path)) from None
    if len(data) > MAX_BYTES:
        what = f"the config is larger than {MAX_BYTES:,} bytes"
        raise ConfigError(what, where=str(path), next=_CONFIG_IS_YAML)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8"
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(what, where=f"{path}:{line}", next="save the file as UTF-8") from None


def _missing(path: Path) -> InputNotFound:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean `{path.parent / near[0]}`?" if near else _CONFIG_IS_YAML
    return InputNotFound("there is no such config file", where=str(path), next=hint)


@dataclass
class _Reader:
    """Builds the value of one document from the parser's events."""

    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    end: int = 0
    values: int = 0

    def document(self, text: str) -> Any:
        """The value of the only document of the text; None where there is none."""
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        starts = (event for event in events if isinstance(event, yaml.DocumentStartEvent))
        try:
            if next(starts, None) is None:
                return None
            value = self._node(next(events), events, ())
            if second := next(starts, None):
                raise _RefusedError("a second document begins", _line(second), "keep only one")
            return value
        except yaml.MarkedYAMLError as error:
            raise _not_yaml(error) from None
        except yaml.reader.ReaderError as error:
            what = f"character U+{int(error.character):04X} is not allowed"
            line = text.count("\n", 0, error.position) + 1
            raise _RefusedError(what, line, "remove it") from None

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: KeyPath) -> Any:
        self._check(event, path)
        if isinstance(event, yaml.ScalarEvent):
            self.end = _end(event)
            return _scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path)
        return self._mapping(events, path)

    def _check(self, event: yaml.Event, path: KeyPath) -> None:
        self.values += 1
        if isinstance(event, yaml.AliasEvent):
            advice = f"write the value out, or quote it where it is text: '*{event.anchor}'"
            raise _RefusedError(f"aliases are not read: `*{event.anchor}`", _line(event), advice)
        if tag := getattr(event, "tag", None):
            advice = "remove the tag, or quote the value where it is text"
            raise _RefusedError(f"tags are not read: `{tag[:60]}`", _line(event), advice)
        if len(path) > MAX_DEPTH:
            what = f"nested deeper than {MAX_DEPTH} levels"
            raise _RefusedError(what, _line(event), "no key of llmkit lies so deep")
        if self.values > MAX_VALUES:
            what = f"more than {MAX_VALUES:,} values"
            raise _RefusedError(what, _line(event), "data belongs in files of its own")

    def _sequence(self, events: Iterator[yaml.Event], path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, str(len(items)))))
        self.end = _end(event)
        return items

    def _mapping(self, events: Iterator[yaml.Event], path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            self._check(key, path)
            if not isinstance(key, yaml.ScalarEvent):
                raise _RefusedError("a key is not text", _line(key), "quote the key")
            inner = (*path, key.value)
            if key.value in mapping:
                self.repeats.append(Repeat(inner, _line(key), self.marks[inner].line))
            event = next(events)
            mapping[key.value] = self._node(event, events, inner)
            self.marks[inner] = Mark(_line(key), _written(event, mapping[key.value]))
        self.end = _end(key)
        return mapping


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _end(event: yaml.Event) -> int:
    return event.end_mark.index if event.end_mark else 0


def _written(event: yaml.Event, value: Any) -> str:
    if isinstance(event, yaml.ScalarEvent) and event.style is None:
        return str(event.value)
    return dump(value)


def _scalar(event: yaml.ScalarEvent) -> Any:
    try:
        event.value.encode()
        return resolve(event.value) if event.style is None else event.value
    except UnicodeEncodeError:
        raise _RefusedError("half a surrogate pair", _line(event), "write the character") from None
    except ValueError as error:
        raise _RefusedError(str(error), _line(event), "quote it where it is text") from None


def _not_yaml(error: yaml.MarkedYAMLError) -> _RefusedError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    reason = " ".join(f"{error.context or ''} {error.problem}".split())
    return _RefusedError(f"not YAML in column {column}: {reason[:200]}", line, _HOW_TO_WRITE)
