"""Every dotted key of the schema, in words: what the messages and the documentation are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

from llmkit.config.scalars import dump
from llmkit.config.schema import Config
from llmkit.config.types import Section
from llmkit.config.yaml12 import KeyPath

NAME = "NAME"
"""Stands in the path of a key for a name of the user's own: `data.mixture.NAME.files`."""


@dataclass(frozen=True)
class Key:
    """One key: what it takes (in words), its default, and what it means."""

    path: KeyPath
    takes: str
    choices: tuple[str, ...]
    default: Any
    meaning: str
    is_open: bool
    """Any key may stand under it: `model.config.hidden_size`."""

    @property
    def name(self) -> str:
        """The dotted name."""
        return ".".join(self.path)


@cache
def keys() -> dict[KeyPath, Key]:
    """Every key that holds a value, in the order of the schema."""
    return {key.path: key for key in _keys_of(Config, ())}


@cache
def sections() -> frozenset[KeyPath]:
    """The paths that hold keys and no value: `train`, `data`, ...; the config itself is ()."""
    return frozenset(path[:depth] for path in keys() for depth in range(len(path)))


def general(path: KeyPath) -> KeyPath:
    """The path with NAME where the user has given a name."""
    for depth in range(len(path)):
        if (*path[:depth], NAME) in sections():
            path = (*path[:depth], NAME, *path[depth + 1 :])
    return path


def owner(path: KeyPath) -> Key | None:
    """The key that a path belongs to: itself, or the open key above it; None for unknown paths."""
    path = general(path)
    for depth in range(len(path), 0, -1):
        key = keys().get(path[:depth])
        if key is not None and (depth == len(path) or key.is_open):
            return key
    return None


def named(leaf: str) -> list[Key]:
    """The keys whose last part is this name, the shallowest first."""
    return sorted((k for k in _fixed() if k.path[-1] == leaf), key=lambda k: len(k.path))


def nearest(path: KeyPath) -> Key | None:
    """The key that was probably meant, by its whole name, its section, or its last part."""
    names = {key.name: key for key in _fixed()}
    if close := difflib.get_close_matches(".".join(path), names, n=1, cutoff=0.85):
        return names[close[0]]
    above = general(path)[:-1]
    neighbours = {key.path[-1]: key for key in keys().values() if key.path[:-1] == above}
    if close := difflib.get_close_matches(path[-1], neighbours, n=1, cutoff=0.6):
        return replace(neighbours[close[0]], path=(*path[:-1], close[0]))
    leaves = {key.path[-1]: key for key in reversed(_fixed())}
    close = difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.8)
    return leaves[close[0]] if close else None


def _fixed() -> list[Key]:
    """The keys whose whole path is ours."""
    return [key for key in keys().values() if NAME not in key.path]


def _keys_of(section: type[Section], above: KeyPath) -> Iterator[Key]:
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        path = (*above, name)
        if inner := _section(field.annotation):
            yield from _keys_of(inner, path)
            continue
        if get_args(field.annotation) and (inner := _section(get_args(field.annotation)[-1])):
            yield from _keys_of(inner, (*path, NAME))
            continue
        yield Key(
            path=path,
            takes=_words(properties[name]),
            choices=_choices(properties[name]),
            default=field.get_default(call_default_factory=True),
            meaning=" ".join((field.description or "").split()),
            is_open=properties[name].get("type") == "object",
        )


def _section(kind: Any) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _choices(schema: dict[str, Any]) -> tuple[str, ...]:
    if "anyOf" in schema:
        return tuple(choice for option in schema["anyOf"] for choice in _choices(option))
    return tuple(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _words(schema: dict[str, Any]) -> str:
    """What a JSON schema accepts, as a person would say it."""
    if "anyOf" in schema:
        return ", or ".join(_words(option) for option in schema["anyOf"])
    if choices := _choices(schema):
        *most, last = [f"`{choice}`" for choice in choices]
        return f"{', '.join(most)} or {last}" if most else last
    match schema.get("type"):
        case "integer":
            return f"a whole number{_bounds(schema)}"
        case "number":
            return f"a number{_bounds(schema)}"
        case "boolean":
            return "`true` or `false`"
        case "string":
            return "text"
        case "array":
            return _list(schema["items"])
        case "object":
            return "keys with values"
        case _:
            return "`null`"


def _list(items: dict[str, Any]) -> str:
    if "anyOf" in items:
        return "a list of these"
    many = {"integer": "whole numbers", "number": "numbers", "string": "texts", "array": "lists"}
    kind = items.get("type")
    if _choices(items) or kind not in many:
        return f"a list of {_words(items)}"
    inner = _list(items["items"]).removeprefix("a list") if kind == "array" else _bounds(items)
    return f"a list of {many[kind]}{inner}"


_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _bounds(schema: dict[str, Any]) -> str:
    said = [f"{words} {dump(schema[name])}" for name, words in _BOUNDS.items() if name in schema]
    return " " + " and ".join(said) if said else ""
