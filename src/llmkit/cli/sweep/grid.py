"""A grid of configurations: `KEY=A,B` on the command line stands for one with each value."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkit.config import keys, yaml12
from llmkit.errors import UsageError
from llmkit.storage import numbered

_MAX_CONFIGURATIONS = 1000
_MAX_NAME = 120

_NOT_SWEPT = {
    "output_dir": "each run of a sweep has its own directory; name the one above them with "
    "`--output-dir DIR`",
    "resume": "the sweep itself resumes what is unfinished; pass one value",
}


@dataclass(frozen=True)
class Configuration:
    """One point of the grid."""

    name: str
    """The values that are its own, as a file name: `learning_rate=1e-3,seed=1`."""
    values: Mapping[str, str]
    """The same by dotted key, as they were written."""
    overrides: Sequence[str]
    """All KEY=VALUE of the command, with these values in place of several."""


def configurations(overrides: Sequence[str]) -> list[Configuration]:
    """Every combination of the values; the last key varies fastest.

    Commas separate values as in a YAML list: a comma inside brackets or quotes is part of a value.
    A later KEY=VALUE replaces an earlier one of the same key. Raises UsageError if no key has
    several values, if a key that cannot be swept has several, or if there are too many
    combinations.
    """
    chosen = {_name(each): each for each in overrides}
    swept = {name: values for name, each in chosen.items() if (values := _values(each))}
    if not swept and any(_is_unknown(each) and "," in each for each in overrides):
        return [Configuration("", {}, overrides)]  # its faults say what to write
    if not swept:
        raise UsageError(
            "`--sweep` needs a key with several values",
            next="separate them with commas: `train.learning_rate=1e-4,3e-4 seed=1,2,3 --sweep`",
        )
    for name in swept:
        if name in _NOT_SWEPT:
            raise UsageError(f"{name} cannot be swept", where=name, next=_NOT_SWEPT[name])
    if (count := math.prod(map(len, swept.values()))) > _MAX_CONFIGURATIONS:
        raise UsageError(
            f"a sweep of {count:,} runs; at most {_MAX_CONFIGURATIONS:,} are allowed",
            where=", ".join(f"{name}: {len(values)} values" for name, values in swept.items()),
            next="give fewer values, or sweep one key after another",
        )
    return list(_combined(overrides, swept))


def _combined(
    overrides: Sequence[str], swept: Mapping[str, Sequence[str]]
) -> Iterator[Configuration]:
    shown = {name: _as_names(values) for name, values in swept.items()}
    short = _short_names(list(swept))
    for chosen in itertools.product(*(range(len(values)) for values in swept.values())):
        numbers = dict(zip(swept, chosen, strict=True))
        values = {name: swept[name][number] for name, number in numbers.items()}
        parts = [f"{short[name]}={shown[name][number]}" for name, number in numbers.items()]
        single = [
            f"{name}={values[name]}" if (name := _name(each)) in values else each
            for each in overrides
        ]
        yield Configuration(_shortened(",".join(parts)), values, single)


def _name(override: str) -> str:
    return override.partition("=")[0]


def _values(override: str) -> list[str]:
    """The values of KEY=A,B; empty for one value, and for a key that does not exist, which is
    reported as it was written."""
    values = yaml12.split_values(override.partition("=")[2])
    return values if len(values) > 1 and not _is_unknown(override) else []


def _is_unknown(override: str) -> bool:
    return keys.owner(tuple(_name(override).split("."))) is None


def _as_names(values: Sequence[str]) -> list[str]:
    """The values as parts of a file name, different from one another in any case."""
    names = ["-" * text.startswith("-") + numbered.safe(text) for text in values]
    folded = Counter(name.casefold() for name in names)
    return [
        f"{name}-{_digest(text)}" if folded[name.casefold()] > 1 or not name.strip("-") else name
        for name, text in zip(names, values, strict=True)
    ]


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The last parts of dotted keys, as many as make them different."""
    depth = 1
    short = dict(zip(names, names, strict=True))
    while depth <= max(name.count(".") + 1 for name in names):
        short = {name: ".".join(name.split(".")[-depth:]) for name in names}
        if len(set(short.values())) == len(names):
            break
        depth += 1
    return {name: numbered.safe(text) for name, text in short.items()}


def _shortened(name: str) -> str:
    if len(name.encode()) <= _MAX_NAME:
        return name
    return f"{name.encode()[:_MAX_NAME].decode(errors='ignore')}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:6]
