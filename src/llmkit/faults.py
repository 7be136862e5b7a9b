"""The one place where a fault becomes a message on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

import typer

from llmkit import __version__
from llmkit.errors import (
    Interrupted,
    LlmkitError,
    ResourceError,
    Stopped,
    UsageError,
    WriteError,
)

MOST_SHOWN = 300
"""Characters of an unexpected message that are shown; the rest is in the log."""

CLOSED_PIPE = 141
"""Exit code when the reader of stdout has gone: 128 + SIGPIPE, as the shell has it."""


def exit_code(work: Callable[[], int]) -> int:
    """The exit code of a piece of work, after its fault, if it has one, was told on stderr."""
    try:
        return work()
    except LlmkitError as fault:
        return _tell(fault)
    except typer.TyperException as fault:
        return _tell(_usage(fault))
    except (KeyboardInterrupt, Ended) as fault:
        return _tell(_stopped(fault))
    except MemoryError:
        return _tell(_out_of_memory())
    except BrokenPipeError:
        _abandon(sys.stdout)
        return CLOSED_PIPE
    except Exception as fault:
        if _is_out_of_memory(fault):
            return _tell(_out_of_memory())
        return _tell_bug(fault)
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":  # what a library in Rust ends with
            raise
        return _tell_bug(fault)


class Ended(BaseException):
    """A signal to stop where nothing is at stake."""


def end_by_signals() -> None:
    """Lets SIGTERM, SIGUSR1 and SIGHUP end this process as Ctrl-C does; a run that has something to
    save watches for them itself. One that is ignored, as by nohup, stays so."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


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
    take their place, and get what others print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


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


def _stopped(fault: KeyboardInterrupt | Ended) -> LlmkitError:
    kept, advice = "what was saved before", "run the same command again"
    if isinstance(fault, Ended):
        return Stopped(f"stopped by {fault}", kept=kept, next=advice)
    return Interrupted("stopped by Ctrl-C", kept=kept, next=advice)


def _is_out_of_memory(fault: Exception) -> bool:
    said = str(fault)
    # A library for which there is no room; where it is not allowed, the reason follows.
    no_room = said.endswith("failed to map segment from shared object")
    return no_room or "out of memory" in said or "allocate memory" in said


def _out_of_memory() -> ResourceError:
    return ResourceError(
        "out of memory",
        kept="what was saved before",
        next="a smaller batch (train.micro_batch_size changes no result), a smaller model, or a "
        "machine with more memory",
    )


def _usage(fault: typer.TyperException) -> UsageError:
    context = getattr(fault, "ctx", None)
    command = context.command_path if context else "llmkit"
    return UsageError(fault.format_message(), next=f"`{command} --help` shows what there is")


def _tell(fault: LlmkitError) -> int:
    """Tells a fault once for all processes of a run."""
    # Imported here: rich is only loaded when something is said.
    from llmkit.reporting.console import is_main_process, printable

    if is_main_process() or fault.rank is not None:
        _say(printable(str(fault)))
    return fault.exit_code


def _tell_bug(fault: BaseException) -> int:
    """Tells a fault that is ours, from every process: another one may never learn of it."""
    from llmkit.reporting.console import printable

    details = "".join(traceback.format_exception(fault))
    path = "" if os.environ.get("LLMKIT_DEBUG") == "1" else _written(details)
    if not path:
        _say(details)
    bug = LlmkitError(
        f"a bug of llmkit: {type(fault).__name__}: {str(fault)[:MOST_SHOWN]}",
        where=path or "above",
        kept="every checkpoint that was saved",
        next="report it with its traceback; to go on, run the same command again",
    )
    _say(printable(str(bug)))
    return bug.exit_code


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
    with contextlib.suppress(OSError, AttributeError):
        print(text, file=sys.stderr, flush=True)
