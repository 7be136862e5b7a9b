"""Suggests what to write instead of an unknown key or an invalid value."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from llmkit.config import keys, other_tools, yaml12
from llmkit.config.jobs import in_words
from llmkit.config.keys import Key
from llmkit.config.schema import Config
from llmkit.config.types import LARGEST, Form
from llmkit.config.yaml12 import KeyPath, dump, resolve_scalar

_SWITCH_WORDS = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True)
class Writing:
    """Writes a key and its value as the place of the fault requires."""

    form: Form
    options: Mapping[str, str] = field(default_factory=dict)
    """The options that set keys, where options are preferred."""

    def __call__(self, name: str, text: str) -> str:
        """The key with its value, ready to be copied."""
        if flag := self.options.get(name):
            return f"`{flag}`" if text == "true" else f"`{flag} {shlex.quote(text)}`"
        if self.form == Form.ARGUMENT:
            return f"`{shlex.quote(f'{name}={text}')}`"
        return f"`{_keyword(name, text)}`" if self.form == Form.KEYWORD else f"`{name}: {text}`"


def _keyword(name: str, text: str) -> str:
    """A key of a section as the keyword of a call: `train={"max_steps": 5}`."""
    try:
        value = yaml12.parse_scalar(text)
    except ValueError:
        value = text
    first, *inner = name.split(".")
    written = json.dumps(value) if isinstance(value, str) else repr(value)
    for part in reversed(inner):
        written = f'{{"{part}": {written}}}'
    return f"{first}={written}"


@dataclass(frozen=True)
class Setting:
    """A name that was given, with its value and context: all that a suggestion depends on."""

    path: KeyPath
    text: str
    """The value as it was written."""
    jobs: Collection[str]
    """The jobs that the command may do: see `llmkit.config.jobs`."""
    writing: Writing
    given: Mapping[str, str]
    """The values of all settings, by the last part of their names."""

    @property
    def leaf(self) -> str:
        """The last part of the name, as keys are written."""
        return self.path[-1].lstrip("-").lower().replace("-", "_")


def for_key(setting: Setting) -> str:
    """What to write instead of an unknown key; else the keys that exist in its section."""
    return known(setting) or _neighbours(setting.path)


def known(setting: Setting) -> str:
    """The same for a key of another tool or a misspelled one; empty for any other."""
    path, leaf = setting.path, setting.leaf
    if keys.general(path) != path:
        return _in_named_section((*path[:-1], leaf), setting.text, setting.writing)
    if ours := keys.key_named(leaf):
        return _ours(ours, setting)
    if leaf in other_tools.ACCUMULATION or leaf in other_tools.PER_DEVICE:
        return _batch(setting)
    if leaf in other_tools.SWITCHES:
        pair = other_tools.SWITCHES[leaf].get(setting.text.lower(), "")
        key, _, text = pair.partition(": ")
        return _meant(key, text, setting) if pair else "remove it"
    if leaf in other_tools.OTHER_DATA:
        key = other_tools.DATA_KEYS.get(min(setting.jobs).partition("/")[0], "")
        return f"write {setting.writing(key, setting.text)}" if key else "remove it"
    if name := other_tools.RENAMED.get(leaf):
        return _meant(name, _translated(name, setting.text), setting)
    if sentence := other_tools.ABSENT.get(leaf):
        return _unless_elsewhere(sentence, setting.jobs)
    if near := keys.nearest((*path[:-1], leaf), setting.jobs):
        return f"did you mean {setting.writing(near.name, setting.text)}?"
    near = keys.nearest((*path[:-1], leaf))
    return _meant(near.name, setting.text, setting) if near else ""


def _ours(ours: Sequence[Key], setting: Setting) -> str:
    """The full names of keys with this last part, of those that apply."""
    applying = [key for key in ours if key.jobs & set(setting.jobs)]
    if not applying:
        return _meant(ours[0].name, _translated(ours[0].name, setting.text), setting)
    written = [setting.writing(key.name, _translated(key.name, setting.text)) for key in applying]
    return "write " + " or ".join(written)


def _meant(name: str, text: str, setting: Setting) -> str:
    """What to write for an intended key, or for its counterpart where it does not apply."""
    key = keys.owner(tuple(name.split(".")))
    assert key is not None
    if key.jobs & set(setting.jobs):
        return f"write {setting.writing(name, text)}"
    instead = for_misplaced(key, setting.jobs, text, setting.writing)
    if instead.startswith("write"):
        return instead
    return f"`{name}` {not_for(key, setting.jobs)}; {instead}"


_NAMED = re.compile(r"`([a-z_.]+)[:=`]")


def _unless_elsewhere(sentence: str, jobs: Collection[str]) -> str:
    """A sentence about keys; a shorter one if all of those keys belong to other commands."""
    named = [keys.owner(tuple(name.split("."))) for name in _NAMED.findall(sentence)]
    ours = [key for key in named if key is not None]
    if ours and not any(key.jobs & set(jobs) for key in ours):
        return f"remove it: {in_words(jobs)} has no use for it"
    return sentence


def not_for(key: Key, jobs: Collection[str]) -> str:
    """The statement that a key does not apply to the jobs."""
    return f"is a key of {key.scope}, not of {in_words(jobs)}"


def for_misplaced(key: Key, jobs: Collection[str], text: str, writing: Writing) -> str:
    """What to write instead of a key that does not apply, with its value where it fits."""
    commands, own = ({job.partition("/")[0] for job in some} for some in (jobs, key.jobs))
    here = [job for job in key.jobs if job.partition("/")[0] in commands]
    chosen = other_tools.CHOOSES.get(min(here, default=""))
    if chosen and commands in (own, own - {"evaluate"}):  # a task, perhaps measured later too
        return f"it needs {writing(*chosen)}; otherwise remove it"
    for name in other_tools.COUNTERPARTS.get(key.name, ()):
        path = tuple(name.split("."))
        if keys.all_keys()[path].jobs & set(jobs):
            keeps = name not in other_tools.IN_OTHER_UNITS and _fits(path, text)
            return f"write {writing(name, text)}" if keeps else f"write `{name}`"
    return "remove it"


def _fits(path: KeyPath, text: str) -> bool:
    try:
        return is_valid(path, yaml12.parse_scalar(text))
    except ValueError:
        return is_valid(path, text)


def for_value(key: Key, path: KeyPath, value: Any, text: str, writing: Writing) -> str:
    """The valid value that was probably meant, or why there is none."""
    for candidate in _candidates(key, value, text):
        if is_valid(path, candidate):
            return f"write {writing('.'.join(path), dump(candidate))}"
    beyond = isinstance(value, float) and LARGEST < abs(value) < math.inf
    return f"above {LARGEST:g}, 32-bit arithmetic overflows" if beyond else ""


def for_several(path: KeyPath, text: str) -> str:
    """What to add where a text lists several valid values of a key; empty for any other."""
    try:
        values = [yaml12.parse_scalar(part) for part in yaml12.split_values(text)]
    except ValueError:
        return ""
    several = len(values) > 1 and all(is_valid(path, value) for value in values)
    return "to train one run with each value, add `--sweep`" if several else ""


def is_valid(path: KeyPath, value: Any) -> bool:
    """Whether a value is valid for a key, with defaults for all others."""
    for part in reversed(path):
        value = {part: value}
    try:
        Config.model_validate(value)
    except ValidationError:
        return False
    return True


def _in_named_section(path: KeyPath, text: str, writing: Writing) -> str:
    """What to write for an unknown key under a name that the user chose."""
    if path[-1] in ("train_files", "train_file", *other_tools.OTHER_DATA):
        path = (*path[:-1], "files")
    near = keys.nearest(path)
    return f"did you mean {writing(near.name, text)}?" if near else _neighbours(path)


def _translated(name: str, text: str) -> str:
    return other_tools.VALUES.get(name, {}).get(text.lower(), text)


def _batch(setting: Setting) -> str:
    """What to write for a batch size: the product of theirs per device, their accumulation and the
    number of processes; without training, what one device computes at once."""
    if not keys.all_keys()["train", "global_batch_size"].jobs & set(setting.jobs):
        return _meant("train.micro_batch_size", setting.text, setting)
    if setting.path[:-1] == ("generation",):
        return f"write {setting.writing('generation.micro_batch_size', setting.text)}"
    per_device = _count(setting, other_tools.PER_DEVICE)
    accumulated = _count(setting, other_tools.ACCUMULATION) or 1
    if per_device is None:
        return "write `train.global_batch_size`, the sequences of one step over all processes"
    total = per_device * accumulated * int(os.environ.get("WORLD_SIZE", "1"))
    written = [setting.writing("train.global_batch_size", str(total))]
    if accumulated > 1:
        written.append(setting.writing("train.micro_batch_size", str(per_device)))
    return "write " + " and ".join(written)


def _count(setting: Setting, names: tuple[str, ...]) -> int | None:
    """The number given under one of the names; that of the setting comes first."""
    own = [setting.text] if setting.leaf in names else []
    texts = [*own, *(setting.given[name] for name in names if name in setting.given)]
    return next((int(text) for text in texts if text.isdecimal()), None)


def _neighbours(path: KeyPath) -> str:
    named = keys.general(path)[:-1]
    above = named if named in keys.sections() else ()
    parts = {
        key.path[len(above)]: None
        for key in keys.all_keys().values()
        if key.path[: len(above)] == above
    }
    where = f"the keys of `{'.'.join(path[:-1])}` are" if above else "the keys are"
    return f"{where} {', '.join(parts)}"


def _candidates(key: Key, value: Any, text: str) -> Iterator[Any]:
    if translated := other_tools.VALUES.get(key.name, {}).get(text.lower()):
        yield resolve_scalar(translated)
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


_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?%?")


def _readings(text: str) -> Iterator[Any]:
    """What text may mean as a number or a switch: `1_000`, `1,000`, `5%`, `yes`."""
    number = text.replace("_", "").strip()
    if _GROUPED.fullmatch(number):
        number = number.replace(",", "")
    for reading in (number, number.removesuffix("%")):
        try:
            plain = resolve_scalar(reading)
        except ValueError:
            continue
        yield plain / 100 if text.endswith("%") and isinstance(plain, int | float) else plain
    if text.lower() in _SWITCH_WORDS:
        yield _SWITCH_WORDS[text.lower()]
