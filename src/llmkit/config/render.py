"""The config and its schema in the forms that people and editors read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llmkit.config import keys
from llmkit.config.load import leaves
from llmkit.config.scalars import dump
from llmkit.config.schema import Config


def as_yaml(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """The config as YAML that reads back as the same config.

    With `sources`, each value says in a comment where it came from.
    """
    lines: list[tuple[str, str]] = []
    above: tuple[str, ...] = ()
    for path, value in leaves(config.model_dump()):
        shared = _shared(above, path[:-1])
        for depth in range(shared, len(path) - 1):
            lines.append((f"{'  ' * depth}{dump(path[depth])}:", ""))
        source = f"# {sources.get('.'.join(path), 'default')}" if sources else ""
        lines.append((f"{'  ' * (len(path) - 1)}{dump(path[-1])}: {dump(value)}", source))
        above = path[:-1]
    width = max(len(text) for text, _ in lines if len(text) <= 60)
    return "".join(f"{text:{width}}  {source}".rstrip() + "\n" for text, source in lines)


TRAINING = ("model", "train")
"""The sections of a config that the README shows; the rest is in configs/README.md."""


def key_table(sections: Collection[str] = ()) -> str:
    """Every key with its type, default, scope and meaning, as a Markdown table; with `sections`,
    only theirs and the top-level keys."""
    rows = [
        f"| `{key.name}` | {key.takes} | `{dump(key.default)}` | {key.scope} | {key.meaning} |"
        for key in keys.keys().values()
        if not sections or len(key.path) == 1 or key.path[0] in sections
    ]
    return (
        "\n".join(["| Key | Type | Default | For | Meaning |", "|---|---|---|---|---|", *rows])
        + "\n"
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, for editors; descriptions end with where a key applies."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "llmkit config",
    }
    for key in keys.keys().values():
        node = schema
        for part in key.path:
            node = _below(schema, node, part)
        node["description"] = f"{key.meaning} For {key.scope}."
    return schema


def _below(schema: dict[str, Any], node: dict[str, Any], part: str) -> dict[str, Any]:
    """The schema of one part of a key's path, inside that of the parts before it."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    found: dict[str, Any] = node["additionalProperties" if part == keys.NAME else "properties"]
    return found if part == keys.NAME else found[part]


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many first parts two paths have in common."""
    pairs = zip(one, other, strict=False)
    return next((depth for depth, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
