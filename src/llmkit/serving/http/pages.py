"""The pages of a server: one to try the models by hand, and the reference of all requests.

Both are self-contained: they load nothing from elsewhere, and browsers enforce that.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 20, "seed": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello!"}]},
    "/v1/classify": {"input": ["wonderful", "never again"]},
    "/v1/answer": {"question": "Where does Bob live?", "context": "Bob lives in Oslo."},
}
"""A body for each path that takes one."""


@dataclass(frozen=True)
class Field:
    """A field of a body."""

    name: str
    takes: str
    meaning: str


@dataclass(frozen=True)
class FieldTable:
    """The fields of a body, or of an object in one."""

    caption: str
    fields: list[Field]


@dataclass(frozen=True)
class Route:
    """A request with its fields and an example."""

    method: str
    path: str
    summary: str
    example: str
    tables: list[FieldTable]

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return self.path.strip("/").replace("/", "-").replace("{", "").replace("}", "") or "page"


def try_page() -> HTMLResponse:
    """The page to try the models by hand."""
    return _page("try.html")


def docs_page(schema: Mapping[str, Any], url: str) -> HTMLResponse:
    """The reference of the requests in an OpenAPI schema."""
    return _page("docs.html", routes=list(_routes(schema, url)), url=url)


def _page(template: str, **values: Any) -> HTMLResponse:
    return HTMLResponse(_templates().get_template(template).render(values), headers=HEADERS)


@cache
def _templates() -> Environment:
    loaders = [PackageLoader("llmkit.serving.http"), PackageLoader("llmkit.reporting")]
    return Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True)


def _routes(schema: Mapping[str, Any], url: str) -> Iterator[Route]:
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            yield Route(
                method.upper(), path, route["summary"], _example(path, url),
                list(_tables(route, schema["components"]["schemas"])),
            )  # fmt: skip


def _example(path: str, url: str) -> str:
    if "{" in path:
        return ""
    command = f"curl {url}{path}"
    if path not in EXAMPLES:
        return command
    data = shlex.quote(json.dumps(EXAMPLES[path]))
    return f'{command} -H "Content-Type: application/json" \\\n  -d {data}'


def _tables(route: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[FieldTable]:
    """The fields of the body, and then those of the objects in it."""
    if "requestBody" not in route:
        return
    content = route["requestBody"]["content"]["application/json"]["schema"]
    names = [_name(content["$ref"])]
    for name in names:
        body = schemas[name]
        needed = body.get("required", [])
        ordered = sorted(body["properties"].items(), key=lambda each: each[0] not in needed)
        fields = [Field(key, _takes(each), _meaning(each, key in needed)) for key, each in ordered]
        meaning = body.get("description", "").split("\n")[0]
        yield FieldTable(meaning if name == names[0] else f"{name}: {meaning}", fields)
        inner = json.dumps(body["properties"])
        names += [other for other in schemas if f'/{other}"' in inner and other not in names]


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _meaning(schema: Mapping[str, Any], is_needed: bool) -> str:
    meaning = " ".join(schema.get("description", "").replace("`", "").split())
    return f"Required. {meaning}".strip() if is_needed else meaning


def _takes(schema: Mapping[str, Any]) -> str:
    """The values of a field in words; null, which is the same as no field, is not listed."""
    if "$ref" in schema:
        return _name(schema["$ref"])
    if "anyOf" in schema:
        options = {_takes(each): None for each in schema["anyOf"] if each.get("type") != "null"}
        return " or ".join(sorted(options, key=len))
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(map(json.dumps, choices))
    if schema.get("type") == "array":
        return f"list of {_takes(schema['items'])}"
    names = {"integer": "int", "number": "number", "boolean": "bool", "string": "text"}
    return names.get(schema.get("type", ""), "object") + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    """The range of a number: ` >= 1`, or ` in (0, 1]` if bounded on both sides."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if low is None:
        return ""
    if high is None:
        return f" {'>=' if 'minimum' in schema else '>'} {low:g}"
    return f" in {'[' if 'minimum' in schema else '('}{low:g}, {high:g}]"
