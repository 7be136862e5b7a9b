"""Loads a config from defaults, a YAML file and the command line, and writes it as YAML."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkit.config import checks, keys, suggestions, yaml12
from llmkit.config.checks import MAX_FAULTS_SHOWN, NO_PLACE, ConfigPlace, Faults
from llmkit.config.schema import Config
from llmkit.config.suggestions import Writing
from llmkit.config.types import RULE
from llmkit.config.yaml12 import KeyPath, dump
from llmkit.errors import UsageError

MAY_BE_EMPTY = {"generation.prompts"}
"""Keys whose option may be empty: a model can generate from an empty prompt."""


@dataclass(frozen=True)
class LoadedConfig:
    """A config, and the origin of each of its values: `default`, `FILE:LINE` or `command line`."""

    config: Config
    sources: Mapping[str, str]


@dataclass(frozen=True)
class GivenOption:
    """An option that sets a key, such as `--model X`; its value is not parsed as YAML."""

    flag: str
    key: str
    value: str | int | Sequence[str]
    after: int = sys.maxsize
    """How many KEY=VALUE arguments come before it: the last value of a key wins."""


@dataclass(frozen=True)
class _Setting:
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
        return Writing(self.place.on_command_line)


def load_config(
    command: str, path: Path | None, overrides: Sequence[str], options: Sequence[GivenOption] = ()
) -> LoadedConfig:
    """The config of a command: defaults, then the YAML file, then KEY=VALUE and options.

    Raises ConfigError with all faults, their places and what to write instead, UsageError for an
    override without `=`, and InputNotFound for a missing file.
    """
    faults = Faults(command)
    found = read_config(command, path, overrides, options, faults)
    faults.check()
    return found


def read_config(
    command: str,
    path: Path | None,
    overrides: Sequence[str],
    options: Sequence[GivenOption],
    faults: Faults,
) -> LoadedConfig:
    """The same as `load_config`, but adds the faults to `faults` and leaves invalid values out."""
    from_file = _from_file(path, faults) if path else []
    from_line = _from_line(overrides, options, faults)
    known, unknown = _known([*from_file, *from_line], faults)
    faults.places |= {each.path: each.place for each in known}
    config = _validated(known, faults)
    jobs = checks.jobs(command, config)
    _check_scope(jobs, known, faults)
    _advise(unknown, jobs, {each.path[-1]: each.text for each in (*known, *unknown)}, faults)
    with faults.collected("train.objective"):
        checks.check_objective(command, config)
    for conflict in checks.conflicts(config, jobs):
        faults.add_of_key(*conflict)
    config._typed = frozenset(each.path for each in known if each.place.on_command_line)
    return LoadedConfig(config, _sources(config, known))


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The values of a nested mapping with their paths; the value of a key is kept whole."""
    owner = keys.owner(path)
    closed = owner is not None and not owner.is_open
    if not isinstance(value, dict) or closed or (not value and path not in keys.sections()):
        yield path, value
        return
    for name, inner in value.items():
        yield from leaves(inner, (*path, name))


def as_yaml(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """The config as YAML that reads back as the same config.

    With `sources`, a comment after each value gives its origin.
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


def _from_file(path: Path, faults: Faults) -> list[_Setting]:
    document = yaml12.read_yaml(path)
    for repeat in document.repeats:
        place = ConfigPlace(False, repeat.line, f"{path}:{repeat.line}")
        faults.add(
            place, ".".join(repeat.path), f"also appears in line {repeat.first_line}; keep one"
        )
    settings = []
    for top, below in document.value.items():
        # A dotted key at the top level means the same as on the command line.
        parts = tuple(top.split("."))
        for inner, value in leaves(below, parts):
            mark = document.marks[(top, *inner[len(parts) :])]
            place = ConfigPlace(False, mark.line, f"{path}:{mark.line}")
            settings.append(_Setting(inner, value, mark.text, place))
    _refuse_repeats(settings, faults)
    return settings


def _from_line(
    overrides: Sequence[str], options: Sequence[GivenOption], faults: Faults
) -> list[_Setting]:
    settings: dict[KeyPath, _Setting] = {}
    _refuse_rivals(options, faults)
    waiting = sorted(options, key=lambda option: option.after)
    for number, argument in enumerate(overrides):
        while waiting and waiting[0].after <= number:
            _give(settings, _from_option(waiting.pop(0), faults))
        place = ConfigPlace(True, number, f"argument {argument}")
        _give(settings, *_from_argument(argument, place, faults))
    for option in waiting:
        _give(settings, _from_option(option, faults))
    return list(settings.values())


def _refuse_rivals(options: Sequence[GivenOption], faults: Faults) -> None:
    """Refuses two options for the same key: it is unclear which one was meant."""
    first: dict[str, GivenOption] = {}
    for option in options:
        before = first.setdefault(option.key, option)
        if before is not option:
            place = ConfigPlace(True, option.after, f"option {option.flag}")
            faults.add(place, option.key, f"is also set by {before.flag}; keep one")


def _give(settings: dict[KeyPath, _Setting], *later: _Setting) -> None:
    """Adds settings; each replaces earlier ones of the same key or of keys below it."""
    for setting in later:
        depth = len(setting.path)
        for path in [path for path in settings if path[:depth] == setting.path]:
            del settings[path]
        settings[setting.path] = setting


def _from_option(option: GivenOption, faults: Faults) -> _Setting:
    place = ConfigPlace(True, option.after, f"option {option.flag}")
    value = option.value if isinstance(option.value, str | int) else list(option.value)
    empty = value == "" or (isinstance(value, list) and "" in value)
    if empty and option.key not in MAY_BE_EMPTY:
        faults.add(place, option.key, "is empty")
    return _Setting(tuple(option.key.split(".")), value, dump(value), place)


def _from_argument(argument: str, place: ConfigPlace, faults: Faults) -> list[_Setting]:
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
            return [_Setting(path, text, text, place)]
        quoted = Writing(True)(name, dump(text))
        faults.add(place, name, str(error), f"to pass text, write {quoted}")
        return []
    if not text.strip():
        faults.add(place, name, "has no value", f"to unset it, write `{name}=null`")
        return []
    return [
        _Setting(inner, item, text if inner == path else dump(item), place)
        for inner, item in leaves(value, path)
    ]


def _takes_text(path: KeyPath) -> bool:
    """Whether a value that is not YAML, such as a lone comma, must be text."""
    key = keys.owner(path)
    types = set() if key is None else set(key.takes.replace(",", "").split())
    return key is not None and key.path == path and bool(types & {"str", "path"})


def _refuse_repeats(settings: Sequence[_Setting], faults: Faults) -> None:
    first: dict[KeyPath, _Setting] = {}
    for setting in settings:
        before = first.setdefault(setting.path, setting)
        if before is not setting:
            faults.add(
                setting.place, setting.name, f"is given twice ({before.place.text}); keep one"
            )


def _known(settings: Sequence[_Setting], faults: Faults) -> tuple[list[_Setting], list[_Setting]]:
    """The settings with known keys, and those with unknown keys."""
    known, unknown = [], []
    for setting in settings:
        if keys.general(setting.path) in keys.sections():
            _check_section(setting, faults)
            if setting.path not in keys.sections():
                known.append(
                    replace(setting, value={})
                )  # an empty section with a chosen name counts
        elif keys.owner(setting.path):
            if _holds_nul(setting.value):
                faults.add(setting.place, setting.name, "contains a NUL character")
            known.append(setting)
        else:
            unknown.append(setting)
    return known, unknown


def _advise(
    unknown: Sequence[_Setting], jobs: Collection[str], given: Mapping[str, str], faults: Faults
) -> None:
    """Adds unknown keys to the faults, with what to write instead for the first ones.

    Finding the intended key takes time, and a data file has thousands of such keys.
    """
    given = {name.replace("-", "_"): text for name, text in given.items()}
    for number, each in enumerate(unknown):
        advice = ""
        if number < MAX_FAULTS_SHOWN:
            asked = suggestions.Setting(each.path, each.text, jobs, each.writing, given)
            advice = suggestions.for_key(asked)
        faults.add(each.place, each.name, "no such key", advice)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(_holds_nul(each) for each in inner)
    return isinstance(value, str) and "\0" in value


def _check_scope(jobs: frozenset[str], settings: Sequence[_Setting], faults: Faults) -> None:
    """Refuses keys on the command line that do not apply; a YAML file may be shared by commands."""
    for setting in settings:
        key = keys.owner(setting.path)
        if setting.place.on_command_line and key is not None and not key.jobs & jobs:
            what = suggestions.not_for(key, jobs)
            next = suggestions.for_misplaced(key, jobs, setting.text, setting.writing)
            faults.add(setting.place, setting.name, what, next)


def _check_section(setting: _Setting, faults: Faults) -> None:
    if setting.value not in (None, {}):
        above = keys.general(setting.path)
        inside = next(k for k in keys.all_keys().values() if k.path[: len(above)] == above)
        such = ".".join((*setting.path, *inside.path[len(above) :]))
        faults.add(
            setting.place, setting.name, f"is a section; set one of its keys, such as `{such}`"
        )


def _validated(settings: Sequence[_Setting], faults: Faults) -> Config:
    """The config of the valid settings; adds the faults of the others."""
    given = {setting.path: setting for setting in settings}
    while True:
        nested: dict[str, Any] = {}
        for setting in given.values():
            _put(nested, setting.path, setting.value)
        try:
            return Config.model_validate(nested)
        except ValidationError as error:
            refused = _refused(error, given, faults)
            if not refused:
                return Config()
            for path in refused:
                del given[path]


def _refused(
    error: ValidationError, given: Mapping[KeyPath, _Setting], faults: Faults
) -> set[KeyPath]:
    """Adds the faults of invalid values, and returns the paths of their settings."""
    refused: set[KeyPath] = set()
    for fault in error.errors(include_url=False, include_context=False):
        place = tuple(map(str, fault["loc"]))
        path = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in given), ())
        if fault["type"] == RULE:
            faults.add_of_key(".".join(path or place), fault["msg"])
        elif path not in refused:
            _add_fault(place, path, fault["msg"], given, faults)
        below = [each for each in given if each[: len(place)] == place]
        refused |= {path} if path else set(below)
    return refused


def _add_fault(
    place: KeyPath,
    path: KeyPath,
    message: str,
    settings: Mapping[KeyPath, _Setting],
    faults: Faults,
) -> None:
    """Adds the fault of one value, once for all types that it was tried as."""
    key = keys.owner(path)
    if key is None:
        faults.add(NO_PLACE, ".".join(place) or "all keys", message)
        return
    setting = settings[path]
    hint = suggestions.for_value(key, path, setting.value, setting.text, setting.writing)
    got = dump(setting.value)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    faults.add(setting.place, setting.name, f"should be {key.takes}; got {got}", hint)


def _put(nested: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(nested.get(part), dict):
            nested[part] = {}
        nested = nested[part]
    nested[path[-1]] = value


def _sources(config: Config, settings: Sequence[_Setting]) -> dict[str, str]:
    sources = {setting.path: setting.place.source for setting in settings}
    found = leaves(config.model_dump())
    return {".".join(path): sources.get(path, "default") for path, _ in found}


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The length of the common prefix of two paths."""
    pairs = zip(one, other, strict=False)
    return next((depth for depth, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
