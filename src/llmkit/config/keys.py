"""Every dotted key of the schema, described for messages and documentation."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args, get_origin

from llmkit.config.jobs import EVERY_JOB, For, in_words
from llmkit.config.schema import Config
from llmkit.config.types import Section
from llmkit.config.yaml12 import KeyPath, dump

KEY_NAME = "NAME"
"""Placeholder for a name that the user chooses: `data.mixture.NAME.files`."""


@dataclass(frozen=True)
class Key:
    """One key: its type in words, default, meaning and jobs."""

    path: KeyPath
    section: type[Section]
    """The config section that defines it."""
    default: Any
    meaning: str
    jobs: frozenset[str]
    """The jobs that it applies to: see `llmkit.config.jobs`."""
    is_open: bool
    """Whether it accepts any keys below it: `model.config.hidden_size`."""

    @property
    def name(self) -> str:
        """The dotted name."""
        return ".".join(self.path)

    @property
    def takes(self) -> str:
        """The types and values that it accepts, in words."""
        return _either(_words(_properties(self.section)[self.path[-1]]))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it accepts, if they are few."""
        return _choices(_properties(self.section)[self.path[-1]])

    @property
    def scope(self) -> str:
        """The commands and tasks that it applies to, as prose."""
        return in_words(self.jobs)


@cache
def all_keys() -> dict[KeyPath, Key]:
    """Every key with a value, in the order of the schema."""
    return {key.path: key for key in _keys_of(Config, (), frozenset())}


@cache
def sections() -> frozenset[KeyPath]:
    """The paths of sections: `train`, `data`, ...; the config itself is ()."""
    return frozenset(path[:depth] for path in all_keys() for depth in range(len(path)))


def general(path: KeyPath) -> KeyPath:
    """The path with NAME in place of names that the user chose."""
    for depth in range(len(path)):
        if (*path[:depth], KEY_NAME) in sections():
            path = (*path[:depth], KEY_NAME, *path[depth + 1 :])
    return path


def owner(path: KeyPath) -> Key | None:
    """The key that a path belongs to: itself, or the open key above it; None for unknown paths."""
    path = general(path)
    for depth in range(len(path), 0, -1):
        key = all_keys().get(path[:depth])
        if key is not None and (depth == len(path) or key.is_open):
            return key
    return None


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The values of a nested mapping with their paths; the value of a key is kept whole."""
    key = owner(path)
    closed = key is not None and not key.is_open
    if not isinstance(value, dict) or closed or (not value and path not in sections()):
        yield path, value
        return
    for name, inner in value.items():
        yield from leaves(inner, (*path, name))


def value_at(config: Config, path: KeyPath) -> Any:
    """The value of a config at a path."""
    value: Any = config.model_dump()
    for part in path:
        value = value[part]
    return value


def key_named(leaf: str) -> list[Key]:
    """The keys whose last part is this name, the shallowest first."""
    fixed = (key for key in all_keys().values() if KEY_NAME not in key.path)
    return sorted((k for k in fixed if k.path[-1] == leaf), key=lambda k: len(k.path))


def nearest(path: KeyPath, jobs: Collection[str] = EVERY_JOB) -> Key | None:
    """The key that a misspelled path probably means, among the keys of the jobs: compares the whole
    name, then the names in its section, then the last part."""
    apply = [key for key in all_keys().values() if key.jobs & set(jobs)]
    fixed = [key for key in apply if KEY_NAME not in key.path]
    names = {key.name: key for key in fixed}
    if close := difflib.get_close_matches(".".join(path), names, n=1, cutoff=0.85):
        return names[close[0]]
    above = general(path)[:-1]
    neighbours = {key.path[-1]: key for key in apply if key.path[:-1] == above}
    if close := difflib.get_close_matches(path[-1], neighbours, n=1, cutoff=0.6):
        return replace(neighbours[close[0]], path=(*path[:-1], close[0]))
    leaves = {key.path[-1]: key for key in reversed(fixed)}
    close = difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.8)
    return leaves[close[0]] if close else None


def _keys_of(section: type[Section], above: KeyPath, jobs: frozenset[str]) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path = (*above, name)
        scope = next((each.jobs for each in field.metadata if isinstance(each, For)), jobs)
        if inner := _section(field.annotation):
            yield from _keys_of(inner, path, scope)
            continue
        if get_args(field.annotation) and (inner := _section(get_args(field.annotation)[-1])):
            yield from _keys_of(inner, (*path, KEY_NAME), scope)
            continue
        yield Key(
            path=path,
            section=section,
            default=field.get_default(call_default_factory=True),
            meaning=" ".join((field.description or "").split()),
            jobs=scope,
            is_open=get_origin(field.annotation) is dict,
        )


@cache
def _properties(section: type[Section]) -> dict[str, Any]:
    """The JSON schema of each key of a section; making those of all takes a tenth of a second."""
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


def _section(kind: Any) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _choices(schema: dict[str, Any]) -> tuple[str, ...]:
    if "anyOf" in schema:
        return tuple(choice for option in schema["anyOf"] for choice in _choices(option))
    return tuple(schema.get("enum", [schema["const"]] if "const" in schema else []))


_TYPES = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "`null`"}


def _words(schema: dict[str, Any]) -> list[str]:
    """The types and values that a JSON schema accepts, named as in Python's documentation."""
    if "anyOf" in schema:
        return [words for option in schema["anyOf"] for words in _words(option)]
    if choices := _choices(schema):
        return [f"`{choice}`" for choice in choices]
    if schema["type"] == "array":
        items = _either(_words(schema["items"]))
        return [f"list of {'paths' if items == 'path' else items}"]
    if schema["type"] == "object":
        return ["mapping"]
    if schema.get("format") == "path":
        return ["path"]
    return [_TYPES[schema["type"]] + _bounds(schema)]


def _either(words: list[str]) -> str:
    *most, last = sorted(words, key=lambda word: word != "`auto`")
    return f"{', '.join(most)} or {last}" if most else last


def _bounds(schema: dict[str, Any]) -> str:
    """The range of a number: ` >= 1`, or ` in [0, 1)` if bounded on both sides."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        ends = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
        return f" in {ends[0]}{dump(low)}, {dump(high)}{ends[1]}"
    if low is not None:
        return f" {'>=' if 'minimum' in schema else '>'} {dump(low)}"
    return "" if high is None else f" {'<=' if 'maximum' in schema else '<'} {dump(high)}"
