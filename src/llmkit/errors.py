"""Every error that a user or a machine can cause, with the exit codes that scripts rely on.

The functions of `llmkit` raise them, all but Interrupted, for which they raise KeyboardInterrupt:

>>> try:
...     pretrain(text="corpus.txt")
... except errors.LlmkitError as error:
...     print(error.what, error.where, error.kept, error.next, error.exit_code)

LlmkitError
├── UsageError           2   the command line is invalid
├── DataError           65   the input was read and is invalid
├── InputNotFound       66   the input is missing or empty
├── HubUnreachable      69   a hub name was given and the hub does not respond
├── ResourceError       71   out of memory, or a process of the run was lost
├── WriteError          73   the output cannot be written
├── Stopped             75   stopped by a signal; everything is saved; run again to resume
├── NoValidCheckpoint   76   checkpoints exist but none is intact
├── Unsafe              77   refused: it would run code or leave its directory
├── ConfigError         78   the config is invalid, or does not match the checkpoint
├── Diverged            79   the loss is NaN or infinite
├── RunBusy             80   another process uses the run directory
└── Interrupted        130   Ctrl-C
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

MAX_LISTED = 20
"""Maximum number of lines in a list of faults."""


class LlmkitError(Exception):
    """An error in four parts: what happened, where, what was kept, and what to do next."""

    exit_code: ClassVar[int] = 1
    name: ClassVar[str] = "internal"
    rank: int | None = None
    """The rank that raised the error; None if every rank did."""
    alone = False
    """Whether every rank reports the error itself."""

    def __init__(self, what: str, *, where: str = "", kept: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.kept = kept
        self.next = next
        self.found: dict[str, Any] = {}
        """Results from before the error, such as the data report."""

    def __str__(self) -> str:
        """The message for stderr."""
        alone = "" if self.rank is None else f" (rank {self.rank})"
        lines = [f"error[{self.name}]: {self.what}{alone}"]
        for part in ("where", "kept", "next"):
            if text := getattr(self, part):
                lines.append(f"{part + ':':7}{text}")
        return "\n".join(lines)

    def described(self) -> dict[str, Any]:
        """The same as JSON: `code` is the exit code, `kind` the name; parts may be empty."""
        parts = {part: getattr(self, part) for part in ("what", "where", "kept", "next")}
        return {"code": self.exit_code, "kind": self.name, **parts}


class UsageError(LlmkitError):
    """The command line is invalid."""

    exit_code, name = 2, "usage"


class DataError(LlmkitError):
    """The input was read and is invalid."""

    exit_code, name = 65, "bad-data"


class InputNotFound(LlmkitError):
    """The input is missing or empty."""

    exit_code, name = 66, "not-found"


class HubUnreachable(LlmkitError):
    """A hub name was given and the hub does not respond."""

    exit_code, name = 69, "hub-unreachable"


class ResourceError(LlmkitError):
    """Out of memory, or a process of the run was lost."""

    exit_code, name = 71, "resources"


class WriteError(LlmkitError):
    """The output cannot be written."""

    exit_code, name = 73, "cannot-write"


class Stopped(LlmkitError):
    """Stopped by a signal; everything is saved; run the same command again to resume."""

    exit_code, name = 75, "stopped"


class NoValidCheckpoint(LlmkitError):
    """Checkpoints exist but none is intact, or the requested one is not."""

    exit_code, name = 76, "no-valid-checkpoint"


class Unsafe(LlmkitError):
    """Refused: it would run code from a file, or leave its directory."""

    exit_code, name = 77, "unsafe"


class ConfigError(LlmkitError):
    """The config is invalid, or does not match the checkpoint."""

    exit_code, name = 78, "bad-config"


class Diverged(LlmkitError):
    """The loss or its gradient is NaN or infinite."""

    exit_code, name = 79, "diverged"


class RunBusy(LlmkitError):
    """Another process uses the run directory."""

    exit_code, name = 80, "run-busy"


class Interrupted(LlmkitError):
    """Ctrl-C."""

    exit_code, name = 130, "interrupted"


def listed(lines: Sequence[str]) -> str:
    """Lines below one another, as the part `where` of an error shows them: at most MAX_LISTED, then
    how many more there are."""
    left = len(lines) - MAX_LISTED
    return "\n       ".join([*lines[:MAX_LISTED], *([f"and {left} more"] if left > 0 else [])])


def error_of(described: Mapping[str, Any]) -> LlmkitError:
    """The error that another process described: the inverse of `described`."""
    parts = {part: str(described.get(part, "")) for part in ("where", "kept", "next")}
    kinds = (kind for kind in LlmkitError.__subclasses__() if kind.name == described.get("kind"))
    return next(kinds, LlmkitError)(str(described.get("what", "")), **parts)
