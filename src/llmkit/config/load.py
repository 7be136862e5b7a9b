"""Loads a config from defaults, a YAML file and the command line, and writes it as YAML."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkit.config import checks, keys, suggestions
from llmkit.config.checks import NO_PLACE, Faults
from llmkit.config.given import GivenOption, GivenValue, from_file, from_keywords, from_line
from llmkit.config.keys import leaves
from llmkit.config.schema import Config
from llmkit.config.types import RULE, Form
from llmkit.config.yaml12 import KeyPath, dump
from llmkit.errors import MAX_LISTED


@dataclass(frozen=True)
class LoadedConfig:
    """A config, and the origin of each of its values: `default`, `FILE:LINE` or `command line`."""

    config: Config
    sources: Mapping[str, str]
    own: Sequence[str]
    """The values that were given for this command alone, as KEY=VALUE."""


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
    return _of_settings(
        command,
        [*(from_file(path, faults) if path else []), *from_line(overrides, options, faults)],
        faults,
    )


def read_keywords(
    command: str, path: Path | None, keywords: Sequence[GivenOption], faults: Faults
) -> LoadedConfig:
    """The config of a call from Python: defaults, then the YAML file, then the keywords.

    Adds the faults to `faults` and leaves invalid values out."""
    own = from_keywords(keywords, faults)
    return _of_settings(command, [*(from_file(path, faults) if path else []), *own], faults)


def _of_settings(command: str, settings: Sequence[GivenValue], faults: Faults) -> LoadedConfig:
    """The config of all settings; a later one replaces an earlier one of the same key."""
    known, unknown = _known(settings, faults)
    faults.places |= {each.path: each.place for each in known}
    config = _validated(known, faults)
    jobs = checks.jobs(command, config)
    _check_scope(jobs, known, faults)
    _advise(unknown, jobs, {each.path[-1]: each.text for each in (*known, *unknown)}, faults)
    with faults.collected("train.objective"):
        checks.check_objective(command, config)
    for conflict in checks.conflicts(config, jobs):
        faults.add_of_key(*conflict)
    own = [each for each in known if each.place.is_own]
    config._own = {each.path: each.place.form for each in own}
    return LoadedConfig(config, _sources(config, known), [f"{o.name}={o.text}" for o in own])


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


def _known(
    settings: Sequence[GivenValue], faults: Faults
) -> tuple[list[GivenValue], list[GivenValue]]:
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
    unknown: Sequence[GivenValue], jobs: Collection[str], given: Mapping[str, str], faults: Faults
) -> None:
    """Adds unknown keys to the faults, with what to write instead for the first ones.

    Finding the intended key takes time, and a data file has thousands of such keys.
    """
    given = {name.replace("-", "_"): text for name, text in given.items()}
    for number, each in enumerate(unknown):
        advice = ""
        if number < MAX_LISTED:
            asked = suggestions.Setting(each.path, each.text, jobs, each.writing, given)
            advice = suggestions.for_key(asked)
        faults.add(each.place, each.name, "no such key", advice)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(_holds_nul(each) for each in inner)
    return isinstance(value, str) and "\0" in value


def _check_scope(jobs: frozenset[str], settings: Sequence[GivenValue], faults: Faults) -> None:
    """Refuses keys on the command line that do not apply; a YAML file may be shared by commands."""
    for setting in settings:
        key = keys.owner(setting.path)
        if setting.place.is_own and key is not None and not key.jobs & jobs:
            what = suggestions.not_for(key, jobs)
            next = suggestions.for_misplaced(key, jobs, setting.text, setting.writing)
            faults.add(setting.place, setting.name, what, next)


def _check_section(setting: GivenValue, faults: Faults) -> None:
    if setting.value not in (None, {}):
        above = keys.general(setting.path)
        inside = next(k for k in keys.all_keys().values() if k.path[: len(above)] == above)
        such = ".".join((*setting.path, *inside.path[len(above) :]))
        faults.add(
            setting.place, setting.name, f"is a section; set one of its keys, such as `{such}`"
        )


def _validated(settings: Sequence[GivenValue], faults: Faults) -> Config:
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
    error: ValidationError, given: Mapping[KeyPath, GivenValue], faults: Faults
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
    settings: Mapping[KeyPath, GivenValue],
    faults: Faults,
) -> None:
    """Adds the fault of one value, once for all types that it was tried as."""
    key = keys.owner(path)
    if key is None:
        faults.add(NO_PLACE, ".".join(place) or "all keys", message)
        return
    setting = settings[path]
    hint = suggestions.for_value(key, path, setting.value, setting.text, setting.writing)
    several = ""
    if setting.place.form == Form.ARGUMENT and faults.command in ("pretrain", "finetune"):
        several = suggestions.for_several(path, setting.text)
    got = dump(setting.value)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    faults.add(setting.place, setting.name, f"should be {key.takes}; got {got}", hint, several)


def _put(nested: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(nested.get(part), dict):
            nested[part] = {}
        nested = nested[part]
    nested[path[-1]] = value


def _sources(config: Config, settings: Sequence[GivenValue]) -> dict[str, str]:
    sources = {setting.path: setting.place.source for setting in settings}
    found = leaves(config.model_dump())
    return {".".join(path): sources.get(path, "default") for path, _ in found}


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The length of the common prefix of two paths."""
    pairs = zip(one, other, strict=False)
    return next((depth for depth, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
