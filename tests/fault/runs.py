"""Whole runs of pretrain and finetune, small enough to be broken off a hundred times."""

from __future__ import annotations

import hashlib
import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.storage import atomic
from tests.harness import Ended, Server, Trial, contents
from tests.jobs import WORDS, changed

STEPS = 12

SMALL = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=2", "tokenizer.vocab_size=300",
    "train.global_batch_size=8", "train.micro_batch_size=4", "train.compile=false",
    "train.precision=fp32", f"train.max_steps={STEPS}", "train.save_steps=3", "train.eval_steps=6",
    "train.logging_steps=1",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command line without its run directory."""

    arguments: tuple[str, ...]

    def at(self, run: Path, *changes: str) -> tuple[str, ...]:
        """The whole command line, some of its keys changed."""
        return (*changed(self.arguments, *changes), "--output-dir", str(run))


def make_jobs(directory: Path) -> dict[str, Job]:
    """The jobs by their commands, on data that is written into the directory."""
    chance = random.Random(0)
    lines = sorted({" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(80)})
    moods = {"good": ("happy", "sunny", "great"), "bad": ("sad", "rainy", "poor")}
    rows = [f"{line} {chance.choice(moods[mood])},{mood}" for line in lines for mood in moods]
    text, table = directory / "corpus.txt", directory / "rows.csv"
    text.write_text("\n".join(lines) + "\n")
    table.write_text("text,label\n" + "\n".join(rows[:100]) + "\n")
    pretrain = ("data.document=line", "data.block_size=16", "generation.max_new_tokens=4")
    return {
        "pretrain": Job(("pretrain", "--text", str(text), *SMALL, *pretrain)),
        "finetune": Job(("finetune", "--csv", str(table), *SMALL)),
    }


def result(run: Path) -> dict[str, str]:
    """What must not hang on interruptions: metrics and the finished model, as hashes of bytes.

    The card of the model is none of it: it states the name of the run and its command.
    """
    metrics = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    return {**final_model(run), "metrics.jsonl": metrics}


def final_model(run: Path) -> dict[str, str]:
    """The hashes of the files of the finished model, without its card, which states the command."""
    return {name: each for name, each in contents(run / "final").items() if name != "README.md"}


def differences(run: Path, reference: Path) -> list[str]:
    """Names of the files in which two runs ended differently."""
    one, other = result(run), result(reference)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints that stand."""
    names = [path.name for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{10}", name))


def kill(
    trials: Server,
    command: tuple[str, ...],
    run: Path,
    seconds: float,
    processes: int = 1,
    rank: int = 0,
) -> Ended:
    """Starts a command, kills one of its processes after so many seconds, and checks that every
    checkpoint that stood is there, or a later one, that all are whole, and that the others end."""
    if processes == 1:
        started = [trials.start(*command)]
    else:
        started = trials.start_processes(processes, *command)
    victim = started.pop(rank)
    victim.listen(seconds)
    before = committed(run)
    ended = victim.end(signal.SIGKILL) if victim.alive() else victim.end()
    others = [trial.end() for trial in started]
    assert all(other.code in (0, 71) for other in others), others
    after = committed(run)
    assert max(after, default=0) >= max(before, default=0), (before, after)
    for step in after:
        atomic.verify(run / "checkpoints" / f"step-{step:010}")
    return ended


def leftovers(run: Path) -> list[str]:
    """Files that a finished run must not leave."""
    found = [
        *run.rglob(".tmp*"),
        *run.rglob(".trash*"),
        *run.rglob("*.tmp"),
        *run.rglob(".corrupt*"),
    ]
    return [str(path) for path in found]


def pair(trials: Server, *arguments: str, **options: Any) -> tuple[Trial, Trial]:
    """Two processes of one run."""
    zero, one = trials.start_processes(2, *arguments, **options)
    return zero, one


def ends(processes: tuple[Trial, Trial]) -> tuple[Ended, Ended]:
    """How both end."""
    return processes[0].end(), processes[1].end()


def finish(trials: Server, job: Job, run: Path, reference: Path) -> None:
    """The same command once more ends as if nothing had happened."""
    for ended in ends(pair(trials, *job.at(run))):
        assert ended.code == 0, ended.err
    assert result(run) == result(reference)
    assert leftovers(run) == []
