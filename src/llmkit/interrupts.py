"""Signals to stop are acknowledged at once, whatever the process is doing.

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
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

PATIENCE = 0.3
"""Seconds that a process has to end before anything is said."""


class State:
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


state = State()


def watch(acknowledge: Callable[[], None], end: Callable[[], None]) -> None:
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
    heard = State()
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
