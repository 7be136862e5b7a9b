"""The one place where a fault becomes a message on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import json as jsonlib
import os
import platform
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TextIO

import typer

from llmkit import __version__
from llmkit.distributed import signals
from llmkit.distributed.launcher import is_main_process
from llmkit.errors import (
    InputNotFound,
    Interrupted,
    LlmkitError,
    ResourceError,
    Stopped,
    UsageError,
    WriteError,
)

MOST_SHOWN = 300
"""Characters of an unexpected message that are shown; the rest is in the log."""

NOTHING_SAVED = "nothing was saved yet"
"""What is kept of a command that was stopped before its work began."""

CLOSED_PIPE = 141
"""Exit code when the reader of stdout has gone: 128 + SIGPIPE, as the shell has it."""


def exit_code(work: Callable[[], int], json: bool = False, warnings: Sequence[str] = ()) -> int:
    """The exit code of a piece of work, after its fault, if it has one, was reported on stderr.

    With `json` it is also printed on stdout, as one JSON object with the warnings so far.
    """
    try:
        return work()
    except BrokenPipeError:
        _abandon(sys.stdout)
        return CLOSED_PIPE
    except SystemExit:
        raise
    except BaseException as error:
        fault = _as_fault(error)
    _tell(fault)
    if json:
        _print_object(fault, warnings)
    return fault.exit_code


class Ended(BaseException):
    """A signal to stop where nothing is at stake."""


def end_by_signals() -> None:
    """Lets SIGTERM, SIGUSR1 and SIGHUP end this process as Ctrl-C does; a run that has something to
    save watches for them itself. One that is ignored, as by nohup, stays so.

    Each is noted, since a library may make an error of its own of what is raised.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        signals.state.is_second(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _ended_by(number)

    for number in signals.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def acknowledge_signals(json: bool) -> None:
    """Acknowledges each signal to stop within a second; a second Ctrl-C ends the process at once.

    Standard streams must be open.
    """
    signals.listen(_acknowledge, lambda: _end_at_once(json))


def _acknowledge() -> None:
    if is_main_process():
        how = "stopping after this step" if signals.state.saving else "stopping"
        _say(f"{how} (Ctrl-C again: now)")


def _end_at_once(json: bool) -> None:
    fault = Interrupted("stopped at once by a second Ctrl-C", kept="what was saved before")
    _say(f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}{fault}")
    if json:
        _print_object(fault, ())


_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


@contextlib.contextmanager
def of_stdout() -> Iterator[None]:
    """Makes a WriteError of a stdout that cannot be written; a reader that has gone is let by."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon(sys.stdout)
        kept = "everything; only the result could not be printed"
        raise WriteError(f"cannot write to stdout: {error.strerror}", kept=kept) from None


def open_streams() -> None:
    """Opens standard streams that are closed, on /dev/null: files that the run opens would else
    take their place, and get what others print. What is printed is UTF-8 in every locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def flush_stderr() -> None:
    """Gives up what stderr still holds and does not take, which the interpreter would make an exit
    code of its own."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    """Lets the interpreter's last flush of a stream go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _as_fault(error: BaseException) -> LlmkitError:
    """The fault of ours that anything raised stands for."""
    number = signals.state.received
    match error:
        case LlmkitError():
            return error
        case typer.TyperException():
            return _usage(error)
        case KeyboardInterrupt() | Ended():
            return stopped(error)
        case MemoryError():
            return _out_of_memory()
        case Exception() if _is_out_of_memory(error):
            return _out_of_memory()
        case _ if number:  # a library that was interrupted raises errors of its own
            return stopped(KeyboardInterrupt() if number == signal.SIGINT else _ended_by(number))
        case OSError() if error.errno is not None:
            return _of_system(error)
        case Exception() if hidden := re.search(r"os error (\d+)", str(error)):  # of Rust
            return _of_system(OSError(int(hidden[1]), os.strerror(int(hidden[1]))))
    return _bug(error)


def stopped(fault: KeyboardInterrupt | Ended, kept: str = NOTHING_SAVED) -> LlmkitError:
    """The fault that a command stopped by a signal ends with."""
    advice = "run the same command again"
    if isinstance(fault, Ended):
        return Stopped(f"stopped by {fault}", kept=kept, next=advice)
    return Interrupted("stopped by Ctrl-C", kept=kept, next=advice)


def _ended_by(number: int) -> Ended:
    return Ended(signal.Signals(number).name)


def _is_out_of_memory(fault: Exception) -> bool:
    said = str(fault)
    # A library for which there is no room; where it is not allowed, the reason follows.
    no_room = said.endswith("failed to map segment from shared object")
    signs = ("out of memory", "allocate memory", "can't start new thread")
    return no_room or any(sign in said for sign in signs)


def _out_of_memory() -> ResourceError:
    return ResourceError(
        "out of memory",
        kept="what was saved before",
        next="a smaller batch (train.micro_batch_size changes no result), a smaller model, or a "
        "machine with more memory",
    )


def _of_system(error: OSError) -> LlmkitError:
    """The fault that an error of the operating system stands for: a file, a disk or a limit."""
    said, path = error.strerror or str(error), str(error.filename or "")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        advice = "raise the limits of the process (`ulimit -a` shows them)"
        return ResourceError(f"a limit of the system was reached: {said}", where=path, next=advice)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO):
        advice = "check the path, and that nothing removes it while llmkit runs"
        return InputNotFound(f"cannot read a file: {said}", where=path, next=advice)
    what = f"the system refuses a file: {said}"
    return WriteError(what, where=path, next="check permissions and free space")


def _usage(fault: typer.TyperException) -> UsageError:
    context = getattr(fault, "ctx", None)
    command = context.command_path if context else "llmkit"
    return UsageError(fault.format_message(), next=f"`{command} --help` lists the options")


def _tell(fault: LlmkitError) -> None:
    """Reports a fault once for all processes of a run; a bug is reported by every one, as the
    others may never learn of it."""
    # Imported here: rich is only loaded when something is said.
    from llmkit.reporting.console import printable

    bug = fault.exit_code == LlmkitError.exit_code
    if is_main_process() or fault.rank is not None or fault.alone or bug:
        _say(printable(str(fault)))


def _print_object(fault: LlmkitError, warnings: Sequence[str]) -> None:
    """Prints a fault on stdout, once for all processes of a run."""
    if not is_main_process() and not fault.alone:
        return
    shown = {"error": fault.described(), **fault.found, "warnings": list(warnings)}
    text = jsonlib.dumps(shown, ensure_ascii=False, default=str)
    try:
        # A lone surrogate, from a name that is not UTF-8, becomes an escape of JSON.
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError, AttributeError):
        _abandon(sys.stdout)


def _bug(error: BaseException) -> LlmkitError:
    """A fault that is ours, with its traceback in a file."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error  # PanicException is what a library in Rust ends with
    details = "".join(traceback.format_exception(error))
    path = "" if os.environ.get("LLMKIT_DEBUG") == "1" else _written(details)
    if not path:
        _say(details)
    return LlmkitError(
        f"a bug of llmkit: {type(error).__name__}: {str(error)[:MOST_SHOWN]}",
        where=path or "above",
        kept="every checkpoint that was saved",
        next="report it with its traceback; to resume, run the same command again",
    )


def _written(details: str) -> str:
    """The path of a new file that holds the details, or nothing where none can be written."""
    origin = f"llmkit {__version__}, Python {platform.python_version()}, {sys.argv}\n\n"
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="llmkit-", suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(origin + details)
        return path
    return ""


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
