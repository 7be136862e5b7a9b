"""Turns errors into messages on stderr and exit codes."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import platform
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import typer

from llmkit import __version__
from llmkit.distributed import signals
from llmkit.distributed.launcher import CAPTURED, is_main_process, reports_errors
from llmkit.errors import (
    InputNotFound,
    Interrupted,
    LlmkitError,
    ResourceError,
    Stopped,
    UsageError,
    WriteError,
)
from llmkit.storage.strict_json import json_text

_MAX_SHOWN = 300
"""Number of characters shown of an unexpected message; the log holds all of it."""

NOTHING_SAVED = "nothing was saved yet"
"""What is kept of a command that stopped before its work began."""

_CLOSED_PIPE = 141
"""Exit code after a broken pipe: 128 + SIGPIPE, as in a shell."""


@dataclass
class Outcome:
    """How a command ended."""

    code: int = 0


@contextlib.contextmanager
def reported(json: bool = False, warnings: Sequence[str] = ()) -> Iterator[Outcome]:
    """Reports an error on stderr and turns it into the exit code of the outcome.

    With `json` the error is also printed on stdout, as a JSON object with the warnings so far.
    """
    outcome, signals.state.answered = Outcome(), False
    try:
        yield outcome
    except BrokenPipeError:
        _abandon(sys.stdout)
        outcome.code = _CLOSED_PIPE
    except SystemExit:
        raise
    except BaseException as error:
        fault = as_fault(error) or _bug(error)
        signals.state.answered = True
        _tell(fault)
        if json:
            _print_object(fault, warnings)
        outcome.code = fault.exit_code


_SOON = 0.01
"""Seconds until an exception that Python ignored is raised again."""


class Ended(BaseException):
    """A signal stopped a command that has nothing to save."""


def end_by_signals(json: bool) -> None:
    """Makes SIGTERM, SIGUSR1 and SIGHUP end this process as Ctrl-C does.

    A run with something to save installs its own handlers. Ignored signals, as under nohup, stay
    ignored. With `json` the error is also printed as JSON.

    Each signal is recorded, since a library may replace the exception by another. An exception that
    Python ignores, because it was raised in a destructor or a callback, is raised again soon.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        signals.state.is_second(number)
        raise_now(KeyboardInterrupt() if number == signal.SIGINT else _ended_by(number))

    def raise_now(error: KeyboardInterrupt | Ended) -> None:
        if (saved := signals.state.importing) is not None:
            _end_now(stopped(error, saved() or NOTHING_SAVED), json)
        raise error

    def raise_again(ignored: sys.UnraisableHookArgs) -> None:
        error = ignored.exc_value
        if not isinstance(error, KeyboardInterrupt | Ended):
            sys.__unraisablehook__(ignored)
            return
        signal.signal(signal.SIGALRM, lambda number, frame: raise_now(error))
        signal.setitimer(signal.ITIMER_REAL, _SOON)

    for number in signals.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    sys.unraisablehook = raise_again


def _end_now(fault: LlmkitError, json: bool) -> None:
    """Reports an error and ends the process with its code, past all that runs in it."""
    signals.state.answered = True
    _tell(fault)
    if json:
        _print_object(fault, ())
    os._exit(fault.exit_code)


def end_process(code: int) -> None:
    """Ends the process with an exit code.

    After Ctrl-C it ends without Python's own end, which kills the process by SIGINT, with another
    code than 130, if the interrupt has passed through a library that runs Python code.
    """
    _flush_stderr()
    if code == Interrupted.exit_code:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def acknowledge_signals(json: bool) -> None:
    """Acknowledges each signal to stop within a second; a second Ctrl-C ends the process at once.

    Standard streams must be open.
    """
    signals.listen(_acknowledge, lambda: _end_at_once(json))


def _acknowledge() -> None:
    if signals.state.answered:  # the message on how it ended has appeared already
        return
    if is_main_process() and not signals.state.children:  # they acknowledge it too
        how = "stopping after this step, which is saved" if signals.state.saving else "stopping"
        _say(f"{how} (Ctrl-C again: now)")


def _end_at_once(json: bool) -> None:
    fault = Interrupted("stopped at once by a second Ctrl-C", kept="everything saved before")
    _say(f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}{fault}")
    if json:
        _print_object(fault, ())


_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


@contextlib.contextmanager
def of_stdout() -> Iterator[None]:
    """Raises WriteError where stdout cannot be written; a broken pipe passes through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon(sys.stdout)
        kept = "everything except the printed result"
        raise WriteError(f"cannot write to stdout: {error.strerror}", kept=kept) from None


def open_streams() -> None:
    """Opens closed standard streams on /dev/null, and makes output UTF-8 in every locale.

    A file that the run opens would otherwise take the number of a closed stream, and receive what
    other code prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _flush_stderr() -> None:
    """Discards stderr that cannot be flushed: Python would otherwise exit with 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    """Redirects a stream to /dev/null, so that Python's last flush succeeds."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def as_fault(error: BaseException) -> LlmkitError | None:
    """The llmkit error for an exception that the user, the system or a signal has caused; None for
    any other, which is a bug."""
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
        case _ if number:  # an interrupted library raises errors of its own
            return stopped(KeyboardInterrupt() if number == signal.SIGINT else _ended_by(number))
        case typer.Abort():
            advice = "answer it, or pass options instead: `llmkit COMMAND --help` lists them"
            return UsageError("a question was not answered", next=advice)
        case OSError() if error.errno is not None:
            return _of_system(error)
        case Exception() if hidden := re.search(r"os error (\d+)", str(error)):  # of Rust
            return _of_system(OSError(int(hidden[1]), os.strerror(int(hidden[1]))))
    return None


def stopped(fault: KeyboardInterrupt | Ended, kept: str = NOTHING_SAVED) -> LlmkitError:
    """The error of a command that a signal stopped."""
    advice = "run the same command again"
    if isinstance(fault, Ended):
        return Stopped(f"stopped by {fault}", kept=kept, next=advice)
    return Interrupted("stopped by Ctrl-C", kept=kept, next=advice)


def _ended_by(number: int) -> Ended:
    return Ended(signal.Signals(number).name)


def _is_out_of_memory(fault: Exception) -> bool:
    message = str(fault)
    # No memory to map a library; if mapping is forbidden, the message continues with the reason.
    no_room = message.endswith("failed to map segment from shared object")
    signs = ("out of memory", "allocate memory", "can't start new thread")
    return no_room or any(sign in message for sign in signs)


def _out_of_memory() -> ResourceError:
    return ResourceError(
        "out of memory",
        kept="everything saved before",
        next="a smaller batch (train.micro_batch_size changes no result), a smaller model, or a "
        "machine with more memory",
    )


def _of_system(error: OSError) -> LlmkitError:
    """The llmkit error for an operating system error: a file, a disk or a limit."""
    reason, path = error.strerror or str(error), str(error.filename or "")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        advice = "raise the limits of the process (`ulimit -a` shows them)"
        return ResourceError(f"reached a limit of the system: {reason}", where=path, next=advice)
    if error.errno in (errno.EACCES, errno.EPERM) and _is_unreadable(path):
        advice = "check the permissions of the file and of the directories above it"
        return InputNotFound(f"cannot read a file: {reason}", where=path, next=advice)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO):
        advice = "check the path, and that nothing removes it while llmkit runs"
        return InputNotFound(f"cannot read a file: {reason}", where=path, next=advice)
    what = f"cannot access a file: {reason}"
    return WriteError(what, where=path, next="check permissions and free space")


def _is_unreadable(path: str) -> bool:
    """Whether a path cannot be read, rather than written."""
    if not os.access(Path(path).parent, os.X_OK):
        return True
    return os.path.lexists(path) and not os.access(path, os.R_OK)


def _usage(fault: typer.TyperException) -> UsageError:
    context = getattr(fault, "ctx", None)
    if context is None or context.parent is None:
        advice = "a command comes before its options; `llmkit --help` lists the commands"
    else:
        advice = f"`{context.command_path} --help` lists the options"
    return UsageError(fault.format_message(), next=advice)


def _tell(fault: LlmkitError) -> None:
    """Prints an error once per run and machine; every rank prints its own bugs, since the others
    may not see them."""
    # Imported here, so that rich loads only when there is something to print.
    from llmkit.reporting.format import printable

    bug = fault.exit_code == LlmkitError.exit_code
    if reports_errors() or fault.rank is not None or fault.alone or bug:
        if fault.rank is None and not is_main_process():
            fault.rank = int(os.environ["RANK"])
        _say(printable(str(fault)))


def _print_object(fault: LlmkitError, warnings: Sequence[str]) -> None:
    """Prints an error as JSON on stdout, once per run."""
    if not (is_main_process() or fault.alone or CAPTURED in os.environ):
        return
    shown = {"error": fault.described(), **fault.found, "warnings": list(warnings)}
    text = json_text(shown)
    try:
        # Lone surrogates, from names that are not UTF-8, become JSON escapes.
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError, AttributeError):
        _abandon(sys.stdout)


def _bug(error: BaseException) -> LlmkitError:
    """The error for a bug of llmkit, with the traceback in a file."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error  # PanicException comes from libraries in Rust
    details = "".join(traceback.format_exception(error))
    path = "" if os.environ.get("LLMKIT_DEBUG") == "1" else _written(details)
    if not path:
        _say(details)
    return LlmkitError(
        f"a bug in llmkit: {type(error).__name__}: {str(error)[:_MAX_SHOWN]}",
        where=path or "above",
        kept="every saved checkpoint",
        next="report it with the traceback; to resume, run the same command again",
    )


def _written(details: str) -> str:
    """The path of a new file with the details; empty if it cannot be written."""
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
