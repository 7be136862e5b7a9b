"""What to write instead of a key or a value that the config cannot take."""

from __future__ import annotations

import difflib
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmkit.config import foreign, keys
from llmkit.config.keys import Key
from llmkit.config.scalars import dump, resolve
from llmkit.config.schema import Config
from llmkit.config.types import LARGEST
from llmkit.config.yaml12 import KeyPath

_SWITCH_WORDS = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True)
class Writing:
    """How a key and its value are written where the fault stands."""

    on_command_line: bool

    def __call__(self, name: str, text: str) -> str:
        """The key with its value, ready to be copied."""
        if self.on_command_line:
            return f"`{shlex.quote(f'{name}={text}')}`"
        return f"`{name}: {text}`"


def for_key(path: KeyPath, text: str, given: Mapping[str, str], writing: Writing) -> str:
    """What to write for a key that is not one of ours, or else the keys that there are.

    `text` is its value as it was written; `given` the texts of all that was given, by last name.
    """
    return known(path, text, given, writing) or _neighbours(path)


def known(path: KeyPath, text: str, given: Mapping[str, str], writing: Writing) -> str:
    """The same for a key that is known elsewhere or is like one of ours; empty for any other."""
    leaf = path[-1].lstrip("-").lower().replace("-", "_")
    if keys.general(path) != path:
        return _in_named_section((*path[:-1], leaf), text, writing)
    if ours := keys.named(leaf):
        texts = [_translated(key.name, text) for key in ours]
        return "write " + " or ".join(map(writing, (key.name for key in ours), texts))
    if leaf in foreign.PER_DEVICE and path[:-1] == ("generation",):
        return f"write {writing('generation.micro_batch_size', text)}"
    if pairs := _pairs(leaf, text, given):
        return "write " + " and ".join(writing(name, value) for name, value in pairs)
    if leaf in foreign.ACCUMULATION or leaf in foreign.PER_DEVICE:
        return "write `train.global_batch_size`, the sequences of one step over all processes"
    if leaf in foreign.SWITCHES:
        return "leave it out"
    if sentence := foreign.ABSENT.get(leaf):
        return sentence
    near = keys.nearest((*path[:-1], leaf))
    return f"did you mean {writing(near.name, text)}?" if near else ""


def for_value(key: Key, path: KeyPath, value: Any, text: str, writing: Writing) -> str:
    """The value that was probably meant, always one that the key takes; or why there is none."""
    for candidate in _candidates(key, value, text):
        if is_valid(path, candidate):
            return f"write {writing('.'.join(path), dump(candidate))}"
    beyond = isinstance(value, float) and LARGEST < abs(value) < math.inf
    return f"above {LARGEST:g}, 32-bit arithmetic overflows" if beyond else ""


def is_valid(path: KeyPath, value: Any) -> bool:
    """Whether a key takes a value, all else being default."""
    for part in reversed(path):
        value = {part: value}
    try:
        Config.model_validate(value)
    except ValidationError:
        return False
    return True


def _in_named_section(path: KeyPath, text: str, writing: Writing) -> str:
    """The same for a key under a name that the user has given."""
    if path[-1] == "train_files" or foreign.RENAMED.get(path[-1]) == "data.train_files":
        path = (*path[:-1], "files")
    near = keys.nearest(path)
    return f"did you mean {writing(near.name, text)}?" if near else _neighbours(path)


def _translated(name: str, text: str) -> str:
    return foreign.VALUES.get(name, {}).get(text.lower(), text)


def _pairs(leaf: str, text: str, given: Mapping[str, str]) -> list[tuple[str, str]]:
    """Our keys and values for a name of theirs, where they can be computed."""
    if leaf in foreign.ACCUMULATION or leaf in foreign.PER_DEVICE:
        return _batch(given)
    if pair := foreign.SWITCHES.get(leaf, {}).get(text.lower()):
        name, value = pair.split(": ")
        return [(name, value)]
    if name := foreign.RENAMED.get(leaf, ""):
        return [(name, _translated(name, text))]
    return []


def _batch(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """The batch of a step, which others give as per device x accumulated x processes."""
    per_device = _count(given, foreign.PER_DEVICE)
    accumulated = _count(given, foreign.ACCUMULATION) or 1
    if per_device is None:
        return []
    total = per_device * accumulated * int(os.environ.get("WORLD_SIZE", "1"))
    pairs = [("train.global_batch_size", str(total))]
    return [*pairs, ("train.micro_batch_size", str(per_device))] if accumulated > 1 else pairs


def _count(given: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    texts = (given[name] for name in names if name in given)
    return next((int(text) for text in texts if text.isdecimal()), None)


def _neighbours(path: KeyPath) -> str:
    named = keys.general(path)[:-1]
    above = named if named in keys.sections() else ()
    parts = {
        key.path[len(above)]: None
        for key in keys.keys().values()
        if key.path[: len(above)] == above
    }
    where = f"`{'.'.join(path[:-1])}` takes" if above else "the config takes"
    return f"{where} {', '.join(parts)}"


def _candidates(key: Key, value: Any, text: str) -> Iterator[Any]:
    if translated := foreign.VALUES.get(key.name, {}).get(text.lower()):
        yield resolve(translated)
    if isinstance(value, str):
        yield from _readings(value)
        yield from difflib.get_close_matches(value.lower(), key.choices, n=1)
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    if isinstance(value, list):
        yield from value if len(value) == 1 else ()
        yield [item if isinstance(item, str) else dump(item) for item in value]
    elif value is not None:
        yield text


def _readings(text: str) -> Iterator[Any]:
    """What a text may mean as a number or a switch: `1_000`, `1,000`, `5%`, `yes`."""
    number = text.replace("_", "").replace(",", "").strip()
    for reading in (number, number.removesuffix("%")):
        try:
            plain = resolve(reading)
        except ValueError:
            continue
        yield plain / 100 if text.endswith("%") and isinstance(plain, int | float) else plain
    if text.lower() in _SWITCH_WORDS:
        yield _SWITCH_WORDS[text.lower()]
