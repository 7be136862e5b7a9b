"""Everything that is wrong with a config, collected to be reported at once with its places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmkit.config.yaml12 import KeyPath
from llmkit.errors import ConfigError, LlmkitError

MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, order=True)
class Place:
    """Where something was given; the file comes before the command line."""

    on_command_line: bool
    number: int
    text: str

    @property
    def source(self) -> str:
        """The place as the origin of a value."""
        return "command line" if self.on_command_line else self.text


NOWHERE = Place(True, 0, "config")
"""The place of what was not given."""


@dataclass
class Faults:
    """What is wrong, in the order of the input."""

    command: str
    places: dict[KeyPath, Place] = field(default_factory=dict)
    """Where each key was given."""
    found: list[tuple[Place, str]] = field(default_factory=list)
    raised: list[tuple[Place, str, LlmkitError]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.found or self.raised)

    def add(self, place: Place, name: str, *said: str) -> None:
        """Adds a fault of the config."""
        self.found.append((place, f"{place.text}: {name}: {'; '.join(filter(None, said))}"))

    def add_of_key(self, name: str, *said: str) -> None:
        """The same where only the key is known."""
        self.add(place_of(name, self.places), name, *said)

    @contextmanager
    def collected(self, name: str) -> Iterator[None]:
        """Adds what is raised inside as a fault of a key, and goes on after it."""
        try:
            yield
        except LlmkitError as fault:
            self.raised.append((place_of(name, self.places), name, fault))

    def check(self) -> None:
        """Raises the only fault as it is, or a ConfigError that lists all of them.

        Several that are of one kind, such as missing files, are raised as that kind.
        """
        if not self:
            return
        if not self.found and len(self.raised) == 1:
            place, name, fault = self.raised[0]
            if not place.on_command_line:
                fault.where = f"{place.text}: {name}: {fault.where}".removesuffix(f": {name}")
            raise fault
        lines = sorted([*self.found, *(self._line(*each) for each in self.raised)])
        kinds = {ConfigError} if self.found else {type(fault) for _, _, fault in self.raised}
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        shown = [line for _, line in lines[:MAX_FAULTS_SHOWN]]
        if len(lines) > MAX_FAULTS_SHOWN:
            shown.append(f"and {len(lines) - MAX_FAULTS_SHOWN} more")
        raise kind(
            f"the config has {len(lines)} faults" if len(lines) > 1 else "the config has a fault",
            where="\n       ".join(shown),
            next=f"correct this; `llmkit keys` explains every key, and `llmkit {self.command} "
            "--print-config` shows their values",
        )

    @staticmethod
    def _line(place: Place, name: str, fault: LlmkitError) -> tuple[Place, str]:
        what = fault.what.removeprefix(f"{name}: ")
        where = "" if fault.where in ("", name) or name in fault.where else f" ({fault.where})"
        next = f"; {fault.next}" if fault.next else ""
        return place, f"{place.text}: {name}: {what}{where}{next}"


def place_of(name: str, places: Mapping[KeyPath, Place]) -> Place:
    """Where a key was given: itself, the nearest key above it, or the first below it."""
    path = tuple(name.split("."))
    for depth in range(len(path), 0, -1):
        if path[:depth] in places:
            return places[path[:depth]]
    below = (place for given, place in places.items() if given[: len(path)] == path)
    return min(below, default=NOWHERE)
