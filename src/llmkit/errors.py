"""Every fault that a user or a machine can cause, each with the exit code that scripts rely on.

LlmkitError
├── UsageError           2   the command line makes no sense
├── DataError           65   the input was read, and is not what it should be
├── InputNotFound       66   the input is missing or empty
├── HubUnreachable      69   a hub name was given and the hub does not answer
├── ResourceError       71   out of memory, or a process of the run was lost
├── WriteError          73   the output cannot be written
├── Stopped             75   a signal came; everything is saved; run again to resume
├── NoValidCheckpoint   76   checkpoints exist and none can be trusted
├── Unsafe              77   refused: it would run code or leave its directory
├── ConfigError         78   the config is wrong, or does not fit the checkpoint
├── Diverged            79   the loss is no longer a number
├── RunBusy             80   another process holds the run directory
└── Interrupted        130   Ctrl-C
"""

from __future__ import annotations

from typing import Any, ClassVar


class LlmkitError(Exception):
    """A fault in four parts: what, where, what was kept, if anything was at stake, and what to do
    next."""

    exit_code: ClassVar[int] = 1
    name: ClassVar[str] = "internal"
    rank: int | None = None
    """The process of the run that has met the fault alone; None where all have."""
    alone = False
    """Whether every process reports the fault, whatever its rank."""

    def __init__(self, what: str, *, where: str = "", kept: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.kept = kept
        self.next = next
        self.found: dict[str, Any] = {}
        """What the command had found out before, such as the report of its data."""

    def __str__(self) -> str:
        """The message as it stands on stderr."""
        alone = "" if self.rank is None else f" (process {self.rank} of the run)"
        lines = [f"error[{self.name}]: {self.what}{alone}"]
        for part in ("where", "kept", "next"):
            if text := getattr(self, part):
                lines.append(f"{part + ':':7}{text}")
        return "\n".join(lines)

    def described(self) -> dict[str, Any]:
        """The same for programs: `code` is the exit code, `kind` the name; parts may be empty."""
        parts = {part: getattr(self, part) for part in ("what", "where", "kept", "next")}
        return {"code": self.exit_code, "kind": self.name, **parts}


class UsageError(LlmkitError):
    """The command line makes no sense."""

    exit_code, name = 2, "usage"


class DataError(LlmkitError):
    """The input was read, and is not what it should be."""

    exit_code, name = 65, "bad-data"


class InputNotFound(LlmkitError):
    """The input is missing or empty."""

    exit_code, name = 66, "not-found"


class HubUnreachable(LlmkitError):
    """A hub name was given and the hub does not answer."""

    exit_code, name = 69, "hub-unreachable"


class ResourceError(LlmkitError):
    """Out of memory, or a process of the run was lost."""

    exit_code, name = 71, "resources"


class WriteError(LlmkitError):
    """The output cannot be written."""

    exit_code, name = 73, "cannot-write"


class Stopped(LlmkitError):
    """A signal came; everything is saved; run the same command again to resume."""

    exit_code, name = 75, "stopped"


class NoValidCheckpoint(LlmkitError):
    """Checkpoints exist and none can be trusted, or the one that was named cannot."""

    exit_code, name = 76, "no-valid-checkpoint"


class Unsafe(LlmkitError):
    """Refused: it would run code from a file, or leave its directory."""

    exit_code, name = 77, "unsafe"


class ConfigError(LlmkitError):
    """The config is wrong, or does not fit the checkpoint."""

    exit_code, name = 78, "bad-config"


class Diverged(LlmkitError):
    """The loss or its gradient is no longer a number."""

    exit_code, name = 79, "diverged"


class RunBusy(LlmkitError):
    """Another process holds the run directory."""

    exit_code, name = 80, "run-busy"


class Interrupted(LlmkitError):
    """Ctrl-C."""

    exit_code, name = 130, "interrupted"
