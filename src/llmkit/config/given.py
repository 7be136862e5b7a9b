"""The values that a command is given: in a YAML file, as arguments, or as keywords of a call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.config import keys, yaml12
from llmkit.config.checks import ConfigPlace, Faults
from llmkit.config.keys import leaves
from llmkit.config.suggestions import Writing
from llmkit.config.types import Form, as_yaml_value
from llmkit.config.yaml12 import KeyPath, dump
from llmkit.errors import UsageError

MAY_BE_EMPTY = {"generation.prompts"}
"""Keys whose option may be empty: a model can generate from an empty prompt."""


@dataclass(frozen=True)
class GivenOption:
    """An option that sets a key, such as `--model X`, or a keyword of a call in Python; its value
    is not parsed as YAML."""

    flag: str
    key: str
    value: Any
    after: int = sys.maxsize
    """How many KEY=VALUE arguments come before it: the last value of a key wins."""


@dataclass(frozen=True)
class GivenValue:
    """A value given for a key."""

    path: KeyPath
    value: Any
    text: str
    place: ConfigPlace

    @property
    def name(self) -> str:
        """The dotted name."""
        return ".".join(self.path)

    @property
    def writing(self) -> Writing:
        """How to write a correction in this place."""
        return Writing(self.place.form)


def from_file(path: Path, faults: Faults) -> list[GivenValue]:
    """The values in a YAML file; raises ConfigError for a file that is not YAML."""
    document = yaml12.read_yaml(path)
    for repeat in document.repeats:
        place = ConfigPlace(Form.YAML, repeat.line, f"{path}:{repeat.line}")
        faults.add(
            place, ".".join(repeat.path), f"also appears in line {repeat.first_line}; keep one"
        )
    settings = []
    for top, below in document.value.items():
        # A dotted key at the top level means the same as on the command line.
        parts = tuple(top.split("."))
        for inner, value in leaves(below, parts):
            mark = document.marks[(top, *inner[len(parts) :])]
            place = ConfigPlace(Form.YAML, mark.line, f"{path}:{mark.line}")
            settings.append(GivenValue(inner, value, mark.text, place))
    _refuse_repeats(settings, faults)
    return settings


def from_line(
    overrides: Sequence[str], options: Sequence[GivenOption], faults: Faults
) -> list[GivenValue]:
    """The values of KEY=VALUE arguments and options, of which the last one of a key wins."""
    settings: dict[KeyPath, GivenValue] = {}
    _refuse_rivals(options, faults)
    waiting = sorted(options, key=lambda option: option.after)
    for number, argument in enumerate(overrides):
        while waiting and waiting[0].after <= number:
            _give(settings, _from_option(waiting.pop(0), faults))
        place = ConfigPlace(Form.ARGUMENT, number, f"argument {argument}")
        _give(settings, *_from_argument(argument, place, faults))
    for option in waiting:
        _give(settings, _from_option(option, faults))
    return list(settings.values())


def from_keywords(keywords: Sequence[GivenOption], faults: Faults) -> list[GivenValue]:
    """The values of the keywords of a call: a section is a mapping, and its keys are as in YAML."""
    settings = []
    for number, given in enumerate(keywords):
        place = ConfigPlace(Form.KEYWORD, number, f"argument {given.flag}")
        path = tuple(given.key.split("."))
        if given.flag != given.key:
            _refuse_empty(given, place, faults)
        for inner, value in leaves(as_yaml_value(given.value), path):
            settings.append(GivenValue(inner, value, dump(value), place))
    _refuse_repeats(settings, faults)
    return settings


def _refuse_rivals(options: Sequence[GivenOption], faults: Faults) -> None:
    """Refuses two options for the same key: it is unclear which one was meant."""
    first: dict[str, GivenOption] = {}
    for option in options:
        before = first.setdefault(option.key, option)
        if before is not option:
            place = ConfigPlace(Form.ARGUMENT, option.after, f"option {option.flag}")
            faults.add(place, option.key, f"is also set by {before.flag}; keep one")


def _give(settings: dict[KeyPath, GivenValue], *later: GivenValue) -> None:
    """Adds settings; each replaces earlier ones of the same key or of keys below it."""
    for setting in later:
        depth = len(setting.path)
        for path in [path for path in settings if path[:depth] == setting.path]:
            del settings[path]
        settings[setting.path] = setting


def _from_option(option: GivenOption, faults: Faults) -> GivenValue:
    place = ConfigPlace(Form.ARGUMENT, option.after, f"option {option.flag}")
    value = option.value if isinstance(option.value, str | int | float) else list(option.value)
    _refuse_empty(option, place, faults)
    return GivenValue(tuple(option.key.split(".")), value, dump(value), place)


def _refuse_empty(option: GivenOption, place: ConfigPlace, faults: Faults) -> None:
    value = option.value
    empty = value == "" or (isinstance(value, list | tuple) and "" in value)
    if empty and option.key not in MAY_BE_EMPTY:
        faults.add(place, option.key, "is empty")


def _from_argument(argument: str, place: ConfigPlace, faults: Faults) -> list[GivenValue]:
    name, equals, text = argument.partition("=")
    if not name or not equals:
        raise UsageError(
            f"`{argument}` is not KEY=VALUE", next="write it as in `train.learning_rate=3e-4`"
        )
    path = tuple(name.split("."))
    try:
        # A lone | or > would open a block in YAML; here it can only be a separator.
        value = text if text in ("|", ">") else yaml12.parse_scalar(text)
    except ValueError as error:
        if text and "\0" not in text and _takes_text(path):
            return [GivenValue(path, text, text, place)]
        quoted = Writing(Form.ARGUMENT)(name, dump(text))
        faults.add(place, name, str(error), f"to pass text, write {quoted}")
        return []
    if not text.strip():
        faults.add(place, name, "has no value", f"to unset it, write `{name}=null`")
        return []
    if isinstance(value, dict) and _takes_text(path):
        return [GivenValue(path, text, text, place)]  # `data.prefix="translate: "` is not a mapping
    return [
        GivenValue(inner, item, text if inner == path else dump(item), place)
        for inner, item in leaves(value, path)
    ]


def _takes_text(path: KeyPath) -> bool:
    """Whether a value that is not a YAML scalar, such as a lone comma or `word:`, must be text."""
    key = keys.owner(path)
    types = set() if key is None else set(key.takes.replace(",", "").split())
    return key is not None and key.path == path and bool(types & {"str", "path"})


def _refuse_repeats(settings: Sequence[GivenValue], faults: Faults) -> None:
    first: dict[KeyPath, GivenValue] = {}
    for setting in settings:
        before = first.setdefault(setting.path, setting)
        if before is not setting:
            faults.add(
                setting.place, setting.name, f"is given twice ({before.place.text}); keep one"
            )
