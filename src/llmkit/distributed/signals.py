"""Requests to stop: a handler notes the signal, the loops ask for it, and the user sees at once
that it has come, whatever the process is doing.

A handler in Python runs between two steps of the interpreter, and a compiler or a tokenizer may
take half a minute for one. So the system also writes each signal into a socket, where a thread
waits for it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llmkit.errors import Interrupted, LlmkitError, Stopped
from llmkit.progress import Advance, Watch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

PATIENCE = 0.3
"""Seconds that a process has to end before anything is said."""


class SignalState:
    """What the thread and the main program know of each other."""

    def __init__(self) -> None:
        self.saving = False
        """Whether a signal is only noted, and the run saves its state before it ends."""
        self.received = 0
        """The first signal that has come, or 0."""
        self.at = 0.0
        """When it came, by the monotonic clock."""
        self.conversation = False
        """Whether Ctrl-C only cuts an answer short."""

    def is_second(self, number: int) -> bool:
        """Notes a signal; whether it is a Ctrl-C after another signal.

        torchrun hands on the Ctrl-C that the terminal has sent to all its processes already: what
        comes at once after it is the same one.
        """
        now = time.monotonic()
        same = now - self.at < (PATIENCE if "TORCHELASTIC_RUN_ID" in os.environ else 0.0)
        again = number == signal.SIGINT and bool(self.received) and not same
        if not self.received:
            self.received, self.at = number, now
        return again


state = SignalState()


class StopSignal:
    """Which signal has asked the run to stop, if any.

    A second Ctrl-C ends the process at once: every write is such that this loses nothing
    that was saved.
    """

    def __init__(self) -> None:
        self.received = 0
        self.heard = SignalState()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: no lock, no output, no collective."""
        if self.heard.is_second(number):
            os._exit(130)
        self.received = number

    def check(self) -> None:
        """Raises Stopped or Interrupted when a signal has come; not while weights are at stake."""
        if self.received:
            raise stopped_by(self.received)

    def watched(self, watch: Watch) -> Watch:
        """The same progress, whose every advance also calls `check`."""

        @contextmanager
        def stoppable(label: str, total: int) -> Iterator[Advance]:
            with watch(label, total) as advance:

                def advance_and_check(amount: int) -> None:
                    advance(amount)
                    self.check()

                yield advance_and_check

        return stoppable


def stopped_by(number: int, kept: str = "") -> LlmkitError:
    """The fault that a run stopped by this signal ends with."""
    name = signal.Signals(number).name
    kind = Interrupted if number == signal.SIGINT else Stopped
    return kind(f"stopped by {name}", kept=kept, next="run the same command again to resume")


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Watches for SIGTERM, SIGUSR1, SIGINT and SIGHUP (a terminal that is gone; not under nohup),
    and puts the earlier handlers back at the end.

    What breaks after a signal broke because of it: a compiler, for one, is stopped by the same
    Ctrl-C as the run.
    """
    stop = StopSignal()
    hearing = [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop.handle) for number in hearing}
    state.received, state.saving = 0, True
    try:
        yield stop
    except Exception as error:
        if stop.received and not isinstance(error, LlmkitError):
            raise stopped_by(stop.received) from error
        raise
    finally:
        state.received, state.saving = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(acknowledge: Callable[[], None], end: Callable[[], None]) -> None:
    """Starts the thread: `acknowledge` is called soon after a first signal, `end` at a second
    Ctrl-C, which ends the process with 130 whatever it is doing."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # A forked child would write its own signals into the same socket.
    os.register_at_fork(after_in_child=_forget)
    arguments = (reader, writer, acknowledge, end)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()


def _forget() -> None:
    signal.set_wakeup_fd(-1)


def _listen(
    reader: socket.socket,
    writer: socket.socket,  # held, so that it stays open
    acknowledge: Callable[[], None],
    end: Callable[[], None],
) -> None:
    heard = SignalState()
    while True:
        for number in reader.recv(1):
            if number not in SIGNALS or state.conversation:
                continue
            first = not heard.received
            if heard.is_second(number):
                end()
                os._exit(128 + signal.SIGINT)
            if first:
                # Not this thread, which has to hear the next one; a daemon, as it is.
                later = threading.Timer(PATIENCE, acknowledge)
                later.daemon = True
                later.start()
