"""A wish to stop: the handler only notes it, the loops ask for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmkit import interrupts
from llmkit.errors import Interrupted, LlmkitError, Stopped


class StopSignal:
    """Which signal has asked the run to stop, if any.

    A second Ctrl-C ends the process at once: every write is such that this loses nothing
    that was saved.
    """

    def __init__(self) -> None:
        self.received = 0
        self.heard = interrupts.State()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: no lock, no output, no collective."""
        if self.heard.is_second(number):
            os._exit(130)
        self.received = number

    def check(self) -> None:
        """Raises Stopped or Interrupted when a signal has come; not while weights are at stake."""
        if self.received:
            raise stopped_by(self.received)


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
        for number in interrupts.SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop.handle) for number in hearing}
    interrupts.state.received, interrupts.state.saving = 0, True
    try:
        yield stop
    except Exception as error:
        if stop.received and not isinstance(error, LlmkitError):
            raise stopped_by(stop.received) from error
        raise
    finally:
        interrupts.state.received, interrupts.state.saving = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)
