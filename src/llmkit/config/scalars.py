"""The core schema of YAML 1.2: unquoted text to values, and values back to text."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

# https://yaml.org/spec/1.2.2/#103-core-schema
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[\w./][\w./+*@%^-]*(:[\w./+-]+)*", re.ASCII)


def resolve(text: str) -> Any:
    """The value of unquoted text; raises ValueError for a whole number beyond 64 bits."""
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
    """A value on one line that YAML 1.2, and 1.1 too, reads back as the same value."""
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


def _whole(text: str) -> int:
    if text.startswith(("0o", "0x")):
        number = int(text, 8 if text[1] == "o" else 16)
    else:
        number = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("the whole number does not fit 64 bits")
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
    """Whether text that is not quoted stays text, by the rules of YAML 1.2 and of 1.1."""
    old_rules = yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], [])
    new_rules = (_NULL, _TRUE, _FALSE, _WHOLE, _FLOAT, _INFINITE, _NAN)
    return not (
        any(pattern.match(text) for _, pattern in old_rules)
        or any(pattern.fullmatch(text) for pattern in new_rules)
    )
