"""Trials: processes that are started at once, watched line by line, and ended in every way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 150.0
"""Seconds after which a trial that has not ended is a failure, on the busiest of machines."""

SURROUNDINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Ended(NamedTuple):
    """How a trial ended: its exit code (negative for a signal) and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Trial:
    """A process that is under way."""

    server: Server
    process: int
    stdout: Path
    lines: int
    """The reading end of its stderr."""
    said: bytes = b""

    def until(self, pattern: str) -> str:
        """Reads stderr until the pattern stands in it, and gives what was said up to there."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern.encode(), self.said):
            if not self._read(deadline):
                raise AssertionError(f"never said {pattern!r}:\n{self.said.decode()}")
        return self.said.decode()

    def until_there(self, directory: Path, pattern: str) -> None:
        """Reads stderr until the trial has made such a file."""
        self._listen_until(lambda: any(directory.glob(pattern)), f"made {pattern}")

    def until_lines(self, path: Path, lines: int) -> None:
        """Reads stderr until a file has this many lines."""
        self._listen_until(
            lambda: path.exists() and path.read_bytes().count(b"\n") >= lines,
            f"wrote {lines} lines",
        )

    def listen(self, seconds: float) -> bool:
        """Reads stderr for this long; whether the trial still has it open then."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return time.monotonic() >= deadline

    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        state = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"

    def limit(self, name: int, bytes: int) -> None:
        """Sets a limit of the process, such as resource.RLIMIT_FSIZE; -1 is none."""
        resource.prlimit(self.process, name, (bytes, resource.RLIM_INFINITY))

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        os.kill(self.process, number)

    def end(self, number: signal.Signals | None = None, patience: float = PATIENCE) -> Ended:
        """Waits for the end, after a signal if one is given; nothing of the trial is left then."""
        if number is not None:
            self.send(number)
        deadline = time.monotonic() + patience
        while self._read(deadline):
            pass
        code = self.server.wait(self.process, max(0.1, deadline - time.monotonic()))
        if code is None:
            self.send(signal.SIGKILL)
            self.server.wait(self.process, PATIENCE)
            raise AssertionError(f"did not end in {patience} s:\n{self.said.decode()}")
        os.close(self.lines)
        self.server.under_way.remove(self)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
            raise AssertionError("left a child behind")
        # One that was killed as it began has not opened its file.
        said = self.stdout.read_text(errors="replace") if self.stdout.exists() else ""
        return Ended(code, said, self.said.decode())

    def _listen_until(self, condition: Callable[[], bool], done: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self.listen(0.01) or time.monotonic() > deadline:
                raise AssertionError(f"never {done}:\n{self.said.decode()}")

    def _read(self, deadline: float) -> bool:
        """Takes in a part of stderr; False at its end or at the deadline."""
        ready = select.select([self.lines], [], [], max(0.0, deadline - time.monotonic()))[0]
        part = os.read(self.lines, 1 << 16) if ready else b""
        self.said += part
        return bool(part)


@dataclass
class Server:
    """The process that forks trials."""

    directory: Path
    under_way: list[Trial] = field(default_factory=list)
    started: int = 0

    def __post_init__(self) -> None:
        (self.directory / "tmp").mkdir()
        inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        cache = {"LLMKIT_CACHE": str(self.directory / "cache")}
        self.environment = {**inherited, **SURROUNDINGS, **cache}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.server"],
            env={**self.environment, "TMPDIR": str(self.directory / "tmp")},
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Trial:
        """Starts a command line, or `function="name"` of `subjects` with its arguments."""
        self.started += 1
        stdout, stderr = (self.directory / f"{self.started}.{name}" for name in ("out", "err"))
        os.mkfifo(stderr)
        lines = os.open(stderr, os.O_RDONLY | os.O_NONBLOCK)
        request = {
            "arguments": list(map(str, arguments)),
            "environment": dict(environment or {}),
            "limits": dict(limits or {}),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "lines": str(stderr),
            "directory": str(self.directory),
            "stdin": "/dev/null",
            "umask": 0o022,
            "halted": False,
            "guard": "",
            "network": "",
            "covered": "",
            **options,
        }
        process = self._ask(request)
        self.under_way.append(Trial(self, process, stdout, lines))
        return self.under_way[-1]

    def start_processes(self, count: int, *arguments: object, **options: Any) -> list[Trial]:
        """Starts the processes of one run, as torchrun would."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def process(rank: int) -> Trial:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            return self.start(*arguments, environment={**shared, **own}, **options)

        return [process(rank) for rank in range(count)]

    def run(self, *arguments: object, **options: Any) -> Ended:
        """Runs a trial to its end."""
        return self.start(*arguments, **options).end()

    def wait(self, process: int, seconds: float) -> int | None:
        """The exit code of a trial, or None when it has not ended in time."""
        return self._ask({"wait": process, "seconds": seconds})

    def close(self) -> None:
        """Ends the server."""
        self.popen.communicate()

    def leftovers(self) -> list[str]:
        """Ends trials that a test has left under way, and names them and their temporary files."""
        left = [f"process {trial.process}" for trial in self.under_way]
        for trial in list(self.under_way):
            trial.end(signal.SIGKILL)
        for path in (self.directory / "tmp").iterdir():
            if not path.name.startswith("torchinductor"):
                path.rename(self.directory / path.name)  # or the next test would be blamed for it
                left.append(path.name)
        return left

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        return json.loads(self.popen.stdout.readline())


STRACE = shutil.which("strace")


@contextlib.contextmanager
def traced(trial: Trial, *options: str) -> Iterator[None]:
    """Attaches strace to a trial that was started `halted`, and lets it go."""
    command = [STRACE or "strace", "-f", "-p", str(trial.process), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        assert "attached" in said, said
        trial.send(signal.SIGCONT)
        yield
        strace.stderr.read()


def contents(directory: Path) -> dict[str, str]:
    """The sha256 of each file under a directory, by its path in it."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
