"""Faults at each system call of a save: what may happen, and what must hold after it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmkit.storage import outputs
from llmkit.training import checkpoint
from tests.harness import Ended, Server, traced

from . import subjects

CALLS = (
    "mkdir", "openat", "write", "fsync", "ftruncate", "rename", "unlinkat", "rmdir", "close",
)  # fmt: skip
"""The system calls by which a save changes the disk."""


def spread(count: int, most: int) -> list[int]:
    """The numbers from 1 to `count`, or that many of them, the first and the last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({round(1 + part * (count - 1) / max(1, most - 1)) for part in range(most)})


@dataclass(frozen=True)
class Saves:
    """A directory with a checkpoint of step 1, in which those of steps 2 and 3 are saved."""

    trials: Server
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def acknowledged(self) -> int:
        """The last step of whose checkpoint the process has said that it is safe."""
        return (self.directory / "acknowledged").stat().st_size

    @classmethod
    def begin(cls, trials: Server, directory: Path) -> Saves:
        """Commits the checkpoint of step 1 in a new directory."""
        directory.mkdir()
        (directory / "acknowledged").touch()
        made = cls(trials, directory)
        assert made.save([1]).code == 0
        return made

    def copy(self, name: str) -> Saves:
        """The same once more, beside this one."""
        return Saves(
            self.trials, Path(shutil.copytree(self.directory, self.directory.with_name(name)))
        )

    def save(self, steps: list[int], *tracing: str) -> Ended:
        """Saves checkpoints in a process, under strace if there are options for it."""
        keywords = {
            "root": str(self.root),
            "acknowledged": str(self.directory / "acknowledged"),
            "steps": steps,
        }
        if not tracing:
            return self.trials.run(function="save", keywords=keywords)
        trial = self.trials.start(function="save", keywords=keywords, halted=True)
        with traced(trial, *tracing):
            return trial.end()

    def calls(self) -> Counter[str]:
        """How often each system call of `CALLS` is made while steps 2 and 3 are saved."""
        log = self.directory / "log"
        assert self.save([2, 3], "-e", f"trace={','.join(CALLS)}", "-o", str(log)).code == 0
        return Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.M))

    def check(self) -> None:
        """What must hold whenever a save has ended, however it ended: the newest checkpoint is one
        that was acknowledged or a later one, all that stand are whole, and nothing is half."""
        found = checkpoint.newest(self.root, lambda text: self._fail(text))
        assert found is not None
        assert found.state.step >= self.acknowledged
        assert subjects.is_right(found)
        assert sorted(self.root.iterdir()) == outputs.checkpoints(self.root)

    def finish(self) -> None:
        """Saves again without a fault: the checkpoints of steps 2 and 3 stand, and nothing else."""
        assert self.save([2, 3]).code == 0
        self.check()
        assert {path.name for path in self.root.iterdir()} == {
            "step-0000000002",
            "step-0000000003",
        }

    @staticmethod
    def _fail(text: str) -> None:
        raise AssertionError(text)
