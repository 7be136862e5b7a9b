"""Ctrl-C is answered at once, also where the interpreter waits for a library."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmkit.distributed.signals import StopSignal, stop_signal
from llmkit.errors import Stopped
from llmkit.progress import Advance

BUSY = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 400_000_000)"
"""Minutes in a library, without a single step of the interpreter."""

IN_A_RUN = f"""
import hashlib, sys
from llmkit.cli import faults
from llmkit.distributed.signals import stop_signal
faults.end_by_signals(json="--json" in sys.argv)
faults.acknowledge_signals(json="--json" in sys.argv)
with stop_signal() as stop:
    print("ready", file=sys.stderr, flush=True)
    {BUSY}
"""

ALONE = f"""
import hashlib, sys
from llmkit.cli import faults
faults.end_by_signals(json="--json" in sys.argv)
faults.acknowledge_signals(json="--json" in sys.argv)
print("ready", file=sys.stderr, flush=True)
{BUSY}
"""


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def started(script: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is busy when this returns; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        assert said(process, b"ready", 30)
        time.sleep(0.2)  # it is about to call the library
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[bytes], wanted: bytes, seconds: float) -> bool:
    """Whether a process says something on stderr in this time."""
    assert process.stderr is not None
    heard, deadline = b"", time.monotonic() + seconds
    while wanted not in heard and time.monotonic() < deadline:
        if select.select([process.stderr], [], [], 0.05)[0]:
            new = os.read(process.stderr.fileno(), 65536)
            if not new:
                break
            heard += new
    return wanted in heard


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        (IN_A_RUN, b"stopping after this step, which is saved (Ctrl-C again: now)"),
        (ALONE, b"stopping (Ctrl-C again: now)"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_acknowledged_while_a_library_is_busy_and_a_second_ctrl_c_ends_it(
    script: str, answer: bytes, number: signal.Signals
) -> None:
    with started(script) as process:
        process.send_signal(number)
        assert said(process, answer, 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130
        assert process.stdout is not None
        error = json.loads(process.stdout.read())["error"]
        assert (error["code"], error["kind"]) == (130, "interrupted")


IN_AN_IMPORT = """
import sys
from llmkit.cli import faults
from llmkit.distributed import signals
faults.end_by_signals(json="--json" in sys.argv)
faults.acknowledge_signals(json="--json" in sys.argv)
with signals.importing(lambda: "checkpoint 3"):
    print("ready", file=sys.stderr, flush=True)
    while True:
        try:  # as a library that ignores exceptions in a callback
            sum(range(1000))
        except BaseException:
            pass
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_in_an_import_ends_the_process_whatever_the_library_does_with_exceptions(
    number: signal.Signals, code: int
) -> None:
    with started(IN_AN_IMPORT) as process:
        process.send_signal(number)
        assert process.wait(5) == code
        assert process.stdout is not None
        error = json.loads(process.stdout.read())["error"]
        assert (error["code"], error["kept"]) == (code, "checkpoint 3")


IN_A_DESTRUCTOR = """
import os, sys, time
from llmkit.cli import faults
class Old:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        sum(range(1000))  # where the handler raises
with faults.reported() as outcome:
    faults.end_by_signals(json=False)
    old = Old()
    del old
    time.sleep(30)
sys.exit(outcome.code)
"""


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 75, "SIGTERM")]
)
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals, code: int, name: str) -> None:
    line = [sys.executable, "-c", IN_A_DESTRUCTOR, str(int(number))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert f"stopped by {name}" in done.stderr


def test_a_ctrl_c_that_has_passed_through_a_library_still_ends_with_its_code() -> None:
    """Python would kill itself with SIGINT instead."""
    script = (
        "import atexit; from llmkit.cli import faults; atexit.register(print, 'cleared')\n"
        "try: exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt: faults.end_process(130)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "cleared\n")


def test_the_ctrl_c_that_torchrun_repeats_is_not_a_second_one() -> None:
    with started(IN_A_RUN, TORCHELASTIC_RUN_ID="a") as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert said(process, b"stopping after this step", 2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130


def test_a_command_that_is_stopped_before_it_saved_anything_says_so(tmp_path: Path) -> None:
    """While the libraries load."""
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 100)
    timed = [sys.executable, "-X", "importtime", "-m", "llmkit"]  # names each import on stderr
    command = [*timed, "pretrain", "--text", str(text), "--json", "-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert said(process, b" torch.", 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    error = json.loads(out)["error"]
    assert (error["code"], error["kept"]) == (130, "nothing was saved yet")
    assert b"Traceback" not in err


def test_ctrl_c_interrupts_a_run_at_once_while_it_has_nothing_to_save() -> None:
    with stop_signal() as stop:
        signal.raise_signal(signal.SIGTERM)  # is recorded, as all are once there is a step
        assert stop.received == signal.SIGTERM
    with stop_signal() as stop:
        stop.saves = False
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_command_line_loads_leaves_no_traceback() -> None:
    timed = [sys.executable, "-X", "importtime", "-m", "llmkit"]  # names each import on stderr
    process = subprocess.Popen([*timed, "env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert said(process, b"typer.models", 60)  # before the first handler
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"nothing was saved yet" in err
    assert b"Traceback" not in err


def test_watched_work_shows_its_progress_and_ends_at_the_first_advance_after_a_signal() -> None:
    shown: list[int] = []

    @contextmanager
    def watch(label: str, total: int) -> Iterator[Advance]:
        yield shown.append

    stop = StopSignal()
    with stop.watched(watch)("tokenizing", 3) as advance:
        advance(1)
        stop.received = signal.SIGTERM
        with pytest.raises(Stopped):
            advance(2)
    assert shown == [1, 2]
