"""YAML 1.2 with the core schema, and the line of every key.

PyYAML reads YAML 1.1, where `3e-4` is text, `no` is false, `010` is eight, and a repeated key wins
silently. Only its composer is used here: it yields nodes, and no object is ever built from a tag.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmkit.errors import ConfigError, InputNotFound

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 16

KeyPath = tuple[str, ...]

_CONFIG_IS_YAML = "CONFIG is a YAML file of keys, which `llmkit keys` lists"
_HOW_TO_WRITE = (
    "indent with spaces, put a space after each `key:`, and quote text that holds `: ` or ` #` "
    "or begins with one of []{}&*!|>%@`"
)


# https://yaml.org/spec/1.2.2/#103-core-schema
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[\w./][\w./+*@%^-]*(:[\w./+-]+)*", re.ASCII)


@dataclass(frozen=True)
class Mark:
    """The line of a key, and its value as written there."""

    line: int
    text: str


@dataclass(frozen=True)
class _Repeat:
    """A key that appears twice in one mapping."""

    path: KeyPath
    line: int
    first_line: int


@dataclass(frozen=True)
class Document:
    """The content of a YAML file: its values, the mark of each key, and repeated keys."""

    value: dict[str, Any]
    marks: dict[KeyPath, Mark]
    repeats: list[_Repeat]


class _RefusedError(Exception):
    """What is wrong, in which line (from 1), and what to do next."""

    def __init__(self, what: str, line: int, next: str) -> None:
        super().__init__(what)
        self.what, self.line, self.next = what, line, next


def read_yaml(path: Path) -> Document:
    """Reads a file with one mapping; its keys are strings, as in JSON.

    Raises InputNotFound for a missing file or a directory, and ConfigError for everything but
    plain YAML: tags, aliases, several documents, more than MAX_BYTES, MAX_VALUES or MAX_DEPTH.
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


def parse_scalar(text: str) -> Any:
    """The value of a line of YAML; raises ValueError with a readable reason."""
    reader = _Reader()
    try:
        value = reader.document(text)
    except _RefusedError as fault:
        raise ValueError(f"{fault.what}; {fault.next}") from None
    if reader.repeats:
        raise ValueError(f"the key `{reader.repeats[0].path[-1]}` appears twice; keep one")
    if "#" in text[reader.end :]:
        raise ValueError("`#` begins a comment in YAML; quote the value to keep it")
    return value


def split_values(text: str) -> list[str]:
    """The parts of a text between the commas that would separate values in a YAML list, as they are
    written. Commas in brackets and quotes do not separate. A text that cannot be so read is one."""
    try:
        reader = _Composer(f"[{text}]")
        node = reader.get_single_node()
    except (yaml.YAMLError, _RefusedError):
        return [text]
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text) + 2:
        return [text]
    ends = [(each.start_mark.index - 1, each.end_mark.index - 1) for each in node.value]
    return [text[start:end].strip() for start, end in ends] or [text]


def resolve_scalar(text: str) -> Any:
    """The value of unquoted text; raises ValueError for an integer beyond 64 bits."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _WHOLE.fullmatch(text):
        return _whole(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITE.fullmatch(text):
        return float(f"{match[1]}inf")
    return math.nan if _NAN.fullmatch(text) else text


def dump(value: Any) -> str:
    """A value on one line that both YAML 1.2 and YAML 1.1 read back as the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _dump_float(value)
    if isinstance(value, str):
        return _dump_text(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump(key)}: {dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(dump(item) for item in value) + "]"
    return str(value)


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
    return InputNotFound("the config file does not exist", where=str(path), next=hint)


class _Composer(yaml.SafeLoader):
    """Composes plain YAML; refuses tags, aliases and what exceeds the limits."""

    values = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, with the places of its beginning and end."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.values += 1
        if isinstance(event, yaml.AliasEvent):
            advice = f"write the value out, or quote it if it is text: '*{event.anchor}'"
            raise _RefusedError(f"aliases are not read: `*{event.anchor}`", _line(event), advice)
        if tag := getattr(event, "tag", None):
            advice = "remove the tag, or quote the value if it is text"
            raise _RefusedError(f"tags are not read: `{tag[:60]}`", _line(event), advice)
        if self.depth > MAX_DEPTH:
            what = f"nested deeper than {MAX_DEPTH} levels"
            raise _RefusedError(what, _line(event), "no key of llmkit is nested that deep")
        if self.values > MAX_VALUES:
            what = f"more than {MAX_VALUES:,} values"
            raise _RefusedError(what, _line(event), "keep data in separate files")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.anchors.clear()  # without aliases, a repeated anchor does no harm
        return node


@dataclass
class _Reader:
    """Turns the nodes of one document into its value."""

    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    repeats: list[_Repeat] = field(default_factory=list)
    end: int = 0

    def document(self, text: str) -> Any:
        """The value of the only document of the text; None where there is none."""
        try:
            composer = _Composer(text)
            node = composer.get_node() if composer.check_node() else None
            if composer.check_node():
                event = composer.peek_event()  # type: ignore[no-untyped-call]
                raise _RefusedError("a second document begins", _line(event), "keep only one")
        except yaml.MarkedYAMLError as error:
            raise _not_yaml(error) from None
        except yaml.reader.ReaderError as error:
            what = f"character U+{int(error.character):04X} is not allowed"
            line = text.count("\n", 0, error.position) + 1
            raise _RefusedError(what, line, "remove it") from None
        if node is None:
            return None
        self.end = node.end_mark.index
        return self._value(node, ())

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, str(n))) for n, item in enumerate(node.value)]
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError("a key is not text", _line(key), "quote the key")
            inner = (*path, key.value)
            if key.value in mapping:
                self.repeats.append(_Repeat(inner, _line(key), self.marks[inner].line))
            mapping[key.value] = self._value(value, inner)
            self.marks[inner] = Mark(_line(key), _written(value, mapping[key.value]))
        return mapping


def _line(part: yaml.Event | yaml.Node) -> int:
    return part.start_mark.line + 1 if part.start_mark else 1


def _written(node: yaml.Node, value: Any) -> str:
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        return str(node.value)
    return dump(value)


def _scalar(node: yaml.ScalarNode) -> Any:
    try:
        node.value.encode()
        return resolve_scalar(node.value) if node.style is None else node.value
    except UnicodeEncodeError:
        raise _RefusedError("half a surrogate pair", _line(node), "write the character") from None
    except ValueError as error:
        raise _RefusedError(str(error), _line(node), "quote it if it is text") from None


def _not_yaml(error: yaml.MarkedYAMLError) -> _RefusedError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    reason = " ".join(f"{error.context or ''} {error.problem}".split())
    return _RefusedError(f"not YAML in column {column}: {reason[:200]}", line, _HOW_TO_WRITE)


def _whole(text: str) -> int:
    if text.startswith(("0o", "0x")):
        number = int(text, 8 if text[1] == "o" else 16)
    else:
        number = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("the integer does not fit in 64 bits")
    return number


def _dump_float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # Without a point, 1e-05 is text to readers of YAML 1.1.
    return text if "." in text else text.replace("e", ".0e")


def _dump_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and _is_text(text):
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()


def _is_text(text: str) -> bool:
    """Whether unquoted text remains text under the rules of both YAML 1.2 and 1.1."""
    old_rules = yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], [])
    new_rules = (_NULL, _TRUE, _FALSE, _WHOLE, _FLOAT, _INFINITE, _NAN)
    return not (
        any(pattern.match(text) for _, pattern in old_rules)
        or any(pattern.fullmatch(text) for pattern in new_rules)
    )
