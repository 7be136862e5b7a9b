"""Processes of one machine end together, with the code of the one that failed first."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkit.distributed.local_ranks import MachineShare, RunEnd, run_local_ranks
from llmkit.distributed.signals import stop_signal

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from llmkit.distributed.child import end_with_parent
rank, here = int(os.environ["RANK"]), Path(sys.argv[1])

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)

"""

STOPS = """
def stop(number, frame):
    (here / f"stopped{rank}").write_text(signal.Signals(number).name)
    if (here / "stopped0").exists() and (here / "stopped1").exists():
        (here / "both").touch()
    wait_for("both")
    sys.exit(130 if number == signal.SIGINT else 75)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, stop)
end_with_parent()
(here / f"pid{rank}").write_text(str(os.getpid()))
"""


def launched(here: Path, script: str, *arguments: str, grace: float = 60) -> RunEnd:
    """The outcome of a script in two processes."""
    command = [sys.executable, "-c", SCRIPT + script, str(here), *arguments]
    with stop_signal() as stop:
        return run_local_ranks(MachineShare(2), command, stop, grace)


@pytest.mark.parametrize(
    ("first", "then", "code", "restarts"),
    [
        (0, 0, 0, False),
        (75, 75, 75, False),
        (79, 79, 79, False),
        (65, 71, 65, False),
        (71, 73, 73, False),  # what is lost says less than any other reason
        (71, 71, 71, True),
        (-9, 71, 71, True),
        (-11, 0, 71, True),
        (1, 71, 1, False),
    ],
)
def test_the_code_is_that_of_the_process_that_failed(
    tmp_path: Path, first: int, then: int, code: int, restarts: bool
) -> None:
    """Rank 1 ends first, and rank 0 notices it."""
    script = f"""
code = {first} if rank == 1 else {then}
if rank == 0:
    wait_for("ended")
else:
    (here / "ended").touch()
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""
    outcome = launched(tmp_path, script)
    assert outcome.code == code
    assert outcome.may_restart is restarts
    if first < 0:
        assert f"rank 1 was ended by {signal.Signals(-first).name}" in str(outcome.fault)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_every_process_once_and_waits_for_what_it_saves(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
if rank == 0:
    wait_for("pid1")
    os.kill(os.getppid(), {int(number)})
wait_for("never")
"""
    outcome = launched(tmp_path, STOPS + script, grace=0)
    assert outcome.code == (130 if number == signal.SIGINT else 75)
    assert not outcome.may_restart
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == [number.name] * 2


def test_a_process_that_does_not_notice_a_lost_one_is_ended(tmp_path: Path) -> None:
    script = """
if rank == 1:
    wait_for("ready")
    print("the last words", file=sys.stderr)
    sys.exit(65)
signal.signal(signal.SIGTERM, lambda number, frame: (here / "asked").touch())
(here / "ready").touch()
wait_for("never")
"""
    outcome = launched(tmp_path, script, grace=0.3)
    assert outcome.code == 65
    assert (tmp_path / "asked").exists()  # before it was killed
    assert outcome.cause is not None
    assert list(outcome.cause.last) == [b"the last words\n"]


def test_with_json_only_one_process_speaks_on_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "print(f'{rank}'); sys.exit(65 * rank)"
    outcome = launched(tmp_path, script, "--json")
    assert outcome.cause is not None
    assert outcome.cause.printed == [b"1\n"]
    assert capfd.readouterr().out == ""


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = """
import sys
from llmkit.distributed.local_ranks import MachineShare, run_local_ranks
from llmkit.distributed.signals import stop_signal
with stop_signal() as stop:
    run_local_ranks(MachineShare(2), sys.argv[1:], stop)
"""
    child = [sys.executable, "-c", SCRIPT + STOPS + "wait_for('never')", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", launcher, *child]) as process:
        processes = [read_when_written(tmp_path / f"pid{rank}") for rank in (0, 1)]
        handles = [os.pidfd_open(int(each)) for each in processes]
        process.send_signal(signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], 60)[0], "it lives on"
            os.close(handle)
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == ["SIGTERM"] * 2


def read_when_written(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def test_each_machine_has_its_ranks() -> None:
    share = MachineShare(3, nodes=2, node=1, address="gpu1", port=29500)
    assert list(share.ranks) == [3, 4, 5]
    found = share.variables(5, 29500)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [found[name] for name in names] == ["5", "6", "2", "3", "gpu1", "29500"]
