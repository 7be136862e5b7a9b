"""Stop signals: a handler records the signal, loops check for it, and the user sees at once that it
was received, whatever the process is doing.

A Python handler runs only between two bytecode instructions, and a compiler or a tokenizer may take
half a minute for one. So the system also writes each signal to a socket, on which a thread waits.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from llmkit.errors import Interrupted, LlmkitError, Stopped
from llmkit.progress import Advance, Watch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

PATIENCE = 0.3
"""Seconds that a process has to end before a message appears."""


class SignalState:
    """The signals received so far; the state shared by the thread and the main program."""

    def __init__(self) -> None:
        self.saving = False
        """Whether a signal is only recorded, and the run saves its state before it ends."""
        self.received = 0
        """The first signal received, or 0."""
        self.at = 0.0
        """When it was received, by the monotonic clock."""
        self.conversation = False
        """Whether Ctrl-C only interrupts a response."""
        self.answered = False
        """Whether a message has said how the command ended."""
        self.importing: Callable[[], str] | None = None
        """While libraries are imported, says what the command has saved before; else None."""
        self.hosted = False
        """Whether the process belongs to a program that calls llmkit, such as a notebook."""
        self.hosted_since = 0.0
        """When the call of that program began, by the monotonic clock."""
        self.children: Sequence[int] = ()
        """The processes that do the work for this one and get its signals."""
        self.passed_on = 0
        """The last signal that the children were sent, or 0."""

    def is_second(self, number: int) -> bool:
        """Records a signal; returns whether it is a Ctrl-C after another signal.

        torchrun forwards the Ctrl-C that the terminal has already sent to all its processes: one
        that follows immediately is the same one.
        """
        now = time.monotonic()
        same = now - self.at < (PATIENCE if "TORCHELASTIC_RUN_ID" in os.environ else 0.0)
        again = number == signal.SIGINT and bool(self.received) and not same
        if not self.received:
            self.received, self.at = number, now
        return again

    def pass_on(self, number: int) -> None:
        """Sends a signal to the children, if there are any."""
        for child in self.children:
            self.passed_on = number
            with suppress(ProcessLookupError):
                os.kill(child, number)


state = SignalState()


class StopSignal:
    """The signal that asked the run to stop, if any.

    While there is nothing to save, Ctrl-C interrupts at once. A second Ctrl-C ends the process at
    once, or in a process that is not ours the run: writes are atomic, so nothing that was saved is
    lost.
    """

    def __init__(self) -> None:
        self.received = 0
        self.seen = SignalState()

    @property
    def saves(self) -> bool:
        """Whether a signal is only recorded, and the run saves its state before it ends."""
        return state.saving

    @saves.setter
    def saves(self, saves: bool) -> None:
        state.saving = saves

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: takes no lock, prints nothing, runs no collective."""
        again = self.seen.is_second(number)
        state.pass_on(number)
        if again and state.hosted:
            raise KeyboardInterrupt
        if again:
            os._exit(130)
        self.received = number
        if number == signal.SIGINT and not self.saves:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises Stopped or Interrupted if a signal was received; call it only where weights are
        safe."""
        if self.received:
            raise stopped_by(self.received)

    def watched(self, watch: Watch) -> Watch:
        """The same progress display, which also calls `check` at every advance."""

        @contextmanager
        def stoppable(label: str, total: int) -> Iterator[Advance]:
            with watch(label, total) as advance:

                def advance_and_check(amount: int) -> None:
                    advance(amount)
                    self.check()

                yield advance_and_check

        return stoppable


def stopped_by(number: int, kept: str = "") -> LlmkitError:
    """The error that ends a run stopped by this signal."""
    name = signal.Signals(number).name
    kind = Interrupted if number == signal.SIGINT else Stopped
    return kind(f"stopped by {name}", kept=kept, next="run the same command again to resume")


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Handles SIGTERM, SIGUSR1, SIGINT and SIGHUP (a closed terminal; not under nohup), and
    restores the earlier handlers at the end.

    Only the main thread can handle signals; elsewhere this does nothing. In a process that is not
    ours, its own handlers stay.

    An error after a signal counts as caused by it: the same Ctrl-C also stops, for example, a
    compiler that the run has started.
    """
    stop = StopSignal()
    handled = [number for number in SIGNALS if _is_free(number)]
    before = {number: signal.signal(number, stop.handle) for number in handled}
    saving = state.saving  # a call from Python may run within another
    state.received, state.saving = 0, True
    try:
        yield stop
    except Exception as error:
        if stop.received and not isinstance(error, LlmkitError):
            raise stopped_by(stop.received) from error
        raise
    finally:
        state.received, state.saving = 0, saving
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def passed_on_to(children: Sequence[int], stop: StopSignal) -> Iterator[None]:
    """A context in which these processes get each signal that this one receives, and one that came
    before them."""
    state.passed_on, state.children = 0, children
    try:
        if stop.received and not state.passed_on:
            state.pass_on(stop.received)
        yield
    finally:
        state.children = ()


def _is_free(number: signal.Signals) -> bool:
    """Whether a run may handle a signal."""
    handler = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread():
        return False
    if state.hosted:
        return handler in (signal.SIG_DFL, signal.default_int_handler)
    return number != signal.SIGHUP or handler is not signal.SIG_IGN


@contextmanager
def importing(saved: Callable[[], str] = str) -> Iterator[None]:
    """A context for importing libraries, in which a signal ends a process of ours at once: an
    exception would pass through their C++, which may abort, or be ignored in a callback.

    `saved` says what the command has saved before.
    """
    state.importing = saved
    try:
        yield
    finally:
        state.importing = None


def listen(acknowledge: Callable[[], None], end: Callable[[], None]) -> None:
    """Starts the thread that calls `acknowledge` soon after a first signal, and `end` at a second
    Ctrl-C, which then ends the process with 130 whatever it is doing."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # A forked child would write its own signals into the same socket.
    os.register_at_fork(after_in_child=_disconnect)
    arguments = (reader, writer, acknowledge, end)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()


def _disconnect() -> None:
    signal.set_wakeup_fd(-1)


def _listen(
    reader: socket.socket,
    writer: socket.socket,  # kept, so that it stays open
    acknowledge: Callable[[], None],
    end: Callable[[], None],
) -> None:
    seen = SignalState()
    while True:
        for number in reader.recv(1):
            if number not in SIGNALS or state.conversation:
                continue
            first = not seen.received
            if seen.is_second(number):
                state.pass_on(number)
                end()
                os._exit(128 + signal.SIGINT)
            if first:
                # In another thread (a daemon like this one): this one waits for the next signal.
                later = threading.Timer(PATIENCE, acknowledge)
                later.daemon = True
                later.start()
