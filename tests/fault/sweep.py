"""The long sweep: hundreds of faults, and one line of figures. `scripts/test --faults` runs it.

Runs of pretrain and finetune are killed at random moments, again and again until they are done; so
is one of two processes of a run, which the other has to notice. Saves are killed, or an error
given, at each of their system calls; bits of checkpoints are flipped. Two processes share the work.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from llmkit.training import checkpoint
from tests.harness import STRACE, Ended, Server

from . import runs
from .runs import Job
from .saving import CALLS, Saves, spread

MAX_IN_A_ROW = 6
"""Kills of one run before it is let finish."""

PARTS = ("saves", "finetune", "pretrain", "processes")

ERRORS = ("ENOSPC", "EIO", "EROFS")


@dataclass
class Figures:
    """What was done, and what came of it."""

    injected: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Takes in the figures of another part."""
        self.injected += other.injected
        self.lost += other.lost
        self.wrong += other.wrong

    def line(self, seconds: float) -> str:
        """All of it in one line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.injected.items()))
        return (
            f"faults injected: {self.injected.total()} ({kinds}); "
            f"checkpoints lost: {len(self.lost)}; wrong bytes: {len(self.wrong)}; {seconds:.0f} s"
        )


@dataclass(frozen=True)
class Sweep:
    """Where the faults are injected, by what chance, and what they came to."""

    trials: Server
    directory: Path
    chance: random.Random
    figures: Figures
    processes: int = 1
    """The number of processes of each run."""

    def kills(self, job: Job, count: int) -> None:
        """Kills runs of a job so many times in all, and compares what they end with."""
        reference = self.directory / "reference"
        began = time.monotonic()
        ended = self._run(*job.at(reference))
        if ended.code != 0:
            raise SystemExit(f"the run without a fault failed:\n{ended.err}")
        seconds, done = time.monotonic() - began, 0
        while done < count:
            run = self.directory / "run"
            in_a_row = min(count - done, self.chance.randint(1, MAX_IN_A_ROW))
            for _ in range(in_a_row):
                self._kill(job, run, self.chance.uniform(0, seconds))
            self._compare(job, run, reference)
            shutil.rmtree(run)
            done += in_a_row
        shutil.rmtree(reference)

    def _kill(self, job: Job, run: Path, seconds: float) -> None:
        name = "kills of runs" if self.processes == 1 else "kills of one of several processes"
        self.figures.injected[name] += 1
        rank = self.chance.randrange(self.processes)
        try:
            runs.kill(self.trials, job.at(run), run, seconds, self.processes, rank)
        except (AssertionError, checkpoint.atomic.DamagedError) as fault:
            self.figures.lost.append(f"{run}: {fault}")

    def _run(self, *command: str) -> Ended:
        """Runs a command to its end; of several processes, the end of the one that failed."""
        if self.processes == 1:
            return self.trials.run(*command)
        started = self.trials.start_processes(self.processes, *command)
        return max((trial.end() for trial in started), key=lambda ended: abs(ended.code))

    def _compare(self, job: Job, run: Path, reference: Path) -> None:
        ended = self._run(*job.at(run))
        if ended.code != 0 or runs.leftovers(run):
            self.figures.lost.append(f"{job.arguments[0]}: {ended}, left {runs.leftovers(run)}")
        elif others := runs.differences(run, reference):
            kept = Path(
                shutil.copytree(run, Path(tempfile.mkdtemp(prefix="llmkit-wrong-")) / "run")
            )
            shutil.copytree(reference, kept.with_name("reference"))
            self.figures.wrong.append(f"{job.arguments[0]}: {others}; see {kept.parent}")

    def saves(self, most: int) -> None:
        """A kill and each error at every system call of two saves, or at so many of each name."""
        begun = Saves.begin(self.trials, self.directory / "begun")
        counts = begun.copy("counted").calls()
        faults = ["signal=SIGKILL", *(f"error={error}" for error in ERRORS)]
        for name in CALLS:
            for number in spread(counts[name], most):
                for fault in faults:
                    self._save(begun, f"{name}:{fault}:when={number}")

    def _save(self, begun: Saves, fault: str) -> None:
        self.figures.injected["faults of system calls"] += 1
        made = begun.copy("faulty")
        try:
            ended = made.save([2, 3], "-e", f"inject={fault}")
            assert ended.code in (0, 73, -signal.SIGKILL), ended
            made.check()
            made.finish()
        except AssertionError as failure:
            self.figures.lost.append(f"{fault}: {failure}")
        shutil.rmtree(made.directory)

    def flips(self, count: int) -> None:
        """Flips a random bit of a random file of a checkpoint; the one before it must be used."""
        begun = Saves.begin(self.trials, self.directory / "flipped")
        begun.save([2])
        for _ in range(count):
            self.figures.injected["flipped bits"] += 1
            made = begun.copy("faulty")
            directory = checkpoint.directory_of(made.root, 2)
            path = self.chance.choice(sorted(directory.iterdir()))
            content = bytearray(path.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            path.write_bytes(content)
            found = checkpoint.newest(made.root, lambda text: None)
            if found is None or found.state.step != 1:
                self.figures.wrong.append(f"a flipped bit of {path.name} went unnoticed")
            shutil.rmtree(made.directory)


def part(name: str, asked: argparse.Namespace) -> Figures:
    """One part of the sweep: the kills of one command, or the faults of saves."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="llmkit-faults-") as directory:
        trials = Server(Path(directory))
        several = 2 if name == "processes" else 1
        chance = random.Random(f"{asked.seed} {name}")
        sweep = Sweep(trials, Path(directory), chance, figures, several)
        if name == "saves":
            sweep.flips(asked.flips)
            if STRACE:
                sweep.saves(asked.calls)
        elif name == "processes":
            job = runs.make_jobs(Path(directory))["pretrain"]
            # The others may wait for a process that was killed before it had met them.
            sweep.kills(Job((*job.arguments, "train.ddp_timeout=10")), asked.process_kills)
        else:
            sweep.kills(runs.make_jobs(Path(directory))[name], asked.kills // 2)
        trials.close()
    return figures


def main() -> None:
    """Runs the sweep and prints its line; ends with 1 where anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=400, help="kills of runs (400)")
    parser.add_argument(
        "--process-kills", type=int, default=200, help="kills of one of two processes (200)"
    )
    parser.add_argument("--flips", type=int, default=200, help="flipped bits (200)")
    parser.add_argument("--calls", type=int, default=10**6, help="places of a system call (all)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not STRACE:
        print("no strace here: no faults of system calls", file=sys.stderr)
    began, whole = time.monotonic(), Figures()
    with ProcessPoolExecutor(2) as pool:
        for figures in pool.map(
            part, ("saves", "finetune", "pretrain", "processes"), repeat(asked)
        ):
            whole.add(figures)
    for failure in (*whole.lost, *whole.wrong):
        print(failure, file=sys.stderr)
    print(whole.line(time.monotonic() - began))
    sys.exit(bool(whole.lost or whole.wrong))


if __name__ == "__main__":
    main()
