"""Work in fixed units, whose results any number of processes make, here or on other machines.

A unit and its name depend on the input, the settings and versions alone, so the results do not
depend on who makes them, nor on the order. Each is a directory that one rename makes visible. A
process begins with the units of its share, then takes those that no other has taken. A unit is
locked while it is made; the system releases the locks of a process that dies, and another process
makes its units again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from llmkit.errors import WriteError
from llmkit.progress import Advance, Watch
from llmkit.storage import atomic

_CLAIMS, _USERS = ".claims", ".users"
_PAUSE = 0.1
"""Seconds between looks at what other processes make."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Unit:
    """A part of the work."""

    name: str
    """A hash of its input, its settings and versions: the name of its directory."""
    size: int
    """Amount of work, for the progress display."""


@dataclass(frozen=True)
class Workers:
    """The share of a command in the work, and the number of its processes."""

    number: int = 0
    """Number of this worker, from 0."""
    count: int = 1
    """Number of workers that share the work, each of them one command."""
    processes: int = 1
    """Number of processes of this worker."""

    def process(self, number: int) -> Workers:
        """One process of this worker, as a worker with one process."""
        return Workers(self.number * self.processes + number, self.count * self.processes)

    def order(self, units: Sequence[int]) -> list[int]:
        """Unit numbers in the order in which this worker takes them: number k is in the share of
        worker k mod `count`. The shares of the others follow, beginning with the next worker's."""
        return sorted(units, key=lambda unit: ((unit - self.number) % self.count, unit))


ALONE = Workers()
"""One process that makes all units."""

MakeUnit = Callable[[int, Path, Advance], dict[str, Any]]
"""Fills the directory of a unit, given by its number, and returns its facts."""


class Units:
    """The results of units, in a directory that belongs to them.

    Used as a context, in which `discard` of another process leaves the directory alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._users = _entered(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._users.close()

    def path(self, unit: Unit) -> Path:
        """The directory of a unit."""
        return self.directory / unit.name

    def facts(self, unit: Unit) -> dict[str, Any] | None:
        """The facts of a unit; None if it is not made, or its manifest is damaged."""
        try:
            return dict(atomic.read_manifest(self.path(unit))["info"])
        except atomic.DamagedError:
            return None

    def make(
        self, units: Sequence[Unit], make: MakeUnit, workers: Workers, watch: Watch, label: str
    ) -> list[dict[str, Any]]:
        """Makes the missing units, waits for those that others are making, and returns the facts of
        all, in order.

        Raises the error of a unit, and WriteError if the directory cannot be written.
        """
        found = [self.facts(unit) for unit in units]
        missing = [number for number, facts in enumerate(found) if facts is None]
        if missing:
            work = _Work(self, units, make)
            with watch(label, sum(units[number].size for number in missing)) as advance:
                if min(workers.processes, len(missing)) > 1:
                    missing = work.by_children(missing, workers, advance)
                else:
                    missing = Workers(workers.number, workers.count).order(missing)
                work.here(missing, advance)
            found = [self.facts(unit) for unit in units]
        return [facts for facts in found if facts is not None]

    def discard(self) -> None:
        """Removes the directory, if no other process uses it; the last of them removes it."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        atomic.discard(self.directory)


class _Work:
    """Units to make, and what makes one."""

    def __init__(self, store: Units, units: Sequence[Unit], make: MakeUnit) -> None:
        self.store, self.units, self.fill = store, units, make
        self.current = 0
        """The unit that this process is making."""

    def here(self, missing: Sequence[int], advance: Advance) -> None:
        """Makes units in this process, in this order, until all are there."""
        left = list(missing)
        with _claims(self.store.directory) as claims:
            while left:
                before = len(left)
                left = [each for each in left if not self._is_made_now(each, claims, advance)]
                if len(left) == before:  # others are making all of them
                    time.sleep(_PAUSE)
                    advance(0)

    def by_children(self, missing: Sequence[int], workers: Workers, advance: Advance) -> list[int]:
        """Makes units in processes of this worker, and returns those that are still missing when
        all have ended or one has failed: what failed is first."""
        children, left, failed = list[_Child](), set(missing), list[int]()
        try:
            for number in range(min(workers.processes, len(missing))):
                children.append(_Child(self, workers.process(number).order(missing)))
            while children and not failed:
                time.sleep(_PAUSE)
                ended = [child for child in children if not child.is_running()]
                children = [child for child in children if child not in ended]
                failed = [child.failed for child in ended if child.failed is not None]
                there = set(os.listdir(self.store.directory))  # noqa: PTH208 (names are enough)
                for number in [each for each in left if self.units[each].name in there]:
                    advance(self.units[number].size)
                    left.remove(number)
                advance(0)
        finally:
            for child in children:
                child.end()
        lost = [number for number in missing if self.store.facts(self.units[number]) is None]
        return sorted(lost, key=lambda number: number not in failed)

    def _is_made_now(self, number: int, claims: _Claims, advance: Advance) -> bool:
        """Makes a unit if it is missing and nobody is making it; returns whether it is there."""
        unit = self.units[number]
        if self.store.facts(unit) is None:
            if not claims.take(number):
                return False
            try:
                if self.store.facts(unit) is None:
                    self._make(number, advance)
                    return True
            finally:
                claims.release(number)
        advance(unit.size)
        return True

    def _make(self, number: int, advance: Advance) -> None:
        self.current, path = number, self.store.path(self.units[number])
        facts = dict[str, Any]()
        if path.exists():
            atomic.discard(path)  # its manifest is damaged
        try:
            atomic.commit(
                path,
                lambda partial: facts.update(self.fill(number, partial, advance)),
                {"info": facts},
            )
        except WriteError:
            # Where files cannot be locked, another process may have made the same unit.
            if self.store.facts(self.units[number]) is None:
                raise


class _Child:
    """A forked process that makes units; it is passed nothing, and sends back only the number of a
    unit that failed, which its parent makes again to raise the error."""

    def __init__(self, work: _Work, missing: Sequence[int]) -> None:
        self.failed: int | None = None
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Threads of libraries are idle here, and those libraries handle a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process = os.fork()
        if not self.process:
            _work_as_child(work, missing, writer)
        os.close(writer)

    def is_running(self) -> bool:
        """Whether the process has not ended; records what failed in it."""
        if self.process and os.waitpid(self.process, os.WNOHANG)[0]:
            self._ended()
        return bool(self.process)

    def end(self) -> None:
        """Ends the process, and waits for it."""
        if self.process:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGTERM)
            os.waitpid(self.process, 0)
            self._ended()

    def _ended(self) -> None:
        self.process = 0
        said = os.read(self._reader, 32)
        os.close(self._reader)
        self.failed = int(said) if said else None


def _work_as_child(work: _Work, missing: Sequence[int], writer: int) -> NoReturn:
    """Makes units until all are there or the parent is gone, and ends this process."""
    code, parent = 1, os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The parent's processes use all cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def check(_amount: int) -> None:
        if os.getppid() != parent:
            os._exit(code)

    try:
        work.here(missing, check)
        code = 0
    except Exception:
        os.write(writer, str(work.current).encode())
    finally:
        os._exit(code)


class _Claims:
    """Locks of units, as bytes of an open file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def take(self, number: int) -> bool:
        """Locks a unit; False while another process has locked it."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            # Without locks, two processes may make the same unit, with the same result.
            return error.errno in _WITHOUT_LOCKS
        return True

    def release(self, number: int) -> None:
        """Unlocks a unit."""
        with suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, number)


@contextmanager
def _claims(directory: Path) -> Iterator[_Claims]:
    try:
        file = (directory / _CLAIMS).open("ab")
    except OSError as error:
        raise atomic.cannot_write(error, directory) from error
    with file:
        yield _Claims(file)


def _entered(directory: Path) -> IO[bytes]:
    """Creates the directory and opens its file of users, with a lock shared by all of them."""
    path = directory / _USERS
    while True:
        try:
            atomic.make_directory(directory)
            file = path.open("ab")
            with suppress(OSError):  # where files cannot be locked
                fcntl.flock(file, fcntl.LOCK_SH)
            if atomic.is_named(file, path):
                return file
            file.close()  # another process has discarded the directory
        except OSError as error:
            if isinstance(error, FileNotFoundError) and directory.parent.is_dir():
                continue
            raise atomic.cannot_write(error, directory) from error
