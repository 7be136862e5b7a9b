"""Settings of a new model's config class: their names, their types, and which go together."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PretrainedConfig

Kind = type[PretrainedConfig]
Fault = tuple[str, str, str]
"""A setting, what is wrong with it, and what to write instead."""

SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
"""Settings that count something there must be one of, by the names that all architectures share."""


def names(kind: Kind) -> set[str]:
    """The settings that a config class takes."""
    fields = {field.name for field in dataclasses.fields(kind)}
    # A config class of a user's own may have an __init__ instead of fields.
    return fields | set(kind.attribute_map) | set(inspect.signature(kind).parameters) - {"kwargs"}


def canonical(kind: Kind, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names that all architectures share (`n_embd` is `hidden_size`)."""
    shared = {own: name for name, own in kind.attribute_map.items()}
    return {shared.get(name, name): value for name, value in settings.items()}


def with_floats(kind: Kind, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with whole numbers as floats where only a float is taken: 0 is one."""
    return {
        name: float(value) if type(value) is int and refusal(kind, name, value) else value
        for name, value in settings.items()
    }


def refusal(kind: Kind, name: str, value: Any) -> str:
    """Why the type of a setting is refused by itself; empty where it is not."""
    try:
        kind(**{name: value})
    except StrictDataclassFieldValidationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        return reason.replace(f"Field '{name}' ", "").partition(" (value:")[0]
    except Exception:  # with the defaults of all others, which other settings may change
        return ""
    return ""


def faults(kind: Kind, settings: dict[str, Any]) -> Iterator[Fault]:
    """Everything that is wrong with settings before a model is built of them."""
    known = names(kind)
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `model.config.{near[0]}`?" if near else "leave it out"
            yield name, f"{kind.model_type} has no such setting", hint
        elif reason := refusal(kind, name, with_floats(kind, {name: value})[name]):
            yield name, reason, ""
        elif _is_no_count(kind, name, value):
            yield name, f"should be int >= 1; got {value}", ""
    yield from _shape(kind, settings)


def _is_no_count(kind: Kind, name: str, value: Any) -> bool:
    (shared,) = canonical(kind, {name: value})
    return shared in SIZES and value is not None and (type(value) is not int or value < 1)


def _shape(kind: Kind, settings: dict[str, Any]) -> Iterator[Fault]:
    """Sizes that cannot be divided among the heads."""
    own = dict(zip(canonical(kind, settings), settings, strict=True))
    given = {n: v for n, v in canonical(kind, settings).items() if type(v) is int and v > 0}
    hidden, heads = given.get("hidden_size"), given.get("num_attention_heads")
    groups, width = given.get("num_key_value_heads"), given.get("head_dim")
    if hidden and heads and "head_dim" not in names(kind) and hidden % heads:
        what = f"{hidden} is not a multiple of the {heads} attention heads"
        fewer, multiple = _divisor(hidden, heads), hidden // heads * heads or heads
        yield own["hidden_size"], what, f"write {multiple}, or {fewer} heads"
    if heads and groups and heads % groups:
        what = f"the {heads} attention heads are not a multiple of {groups}"
        yield own["num_key_value_heads"], what, f"write {_divisor(heads, groups)}"
    wide = width or (hidden // heads if hidden and heads else 0)
    if "head_dim" in names(kind) and "rope_parameters" in names(kind) and wide % 2:
        what = f"a head of {wide} is odd, which rotary positions cannot turn"
        yield own["head_dim" if width else "hidden_size"], what, "choose an even size of a head"


def _divisor(whole: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if whole % n == 0)
