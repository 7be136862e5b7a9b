"""The order in which a save reaches the disk: a kill cannot show what a power loss would.

From a log of system calls: what a name stands for is flushed before the name is there, and nothing
older goes before that name is flushed itself (section 8 of the protocol of
`llmkit.storage.atomic`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import STRACE, Server, traced

from . import runs
from .runs import Job

pytestmark = pytest.mark.skipif(STRACE is None, reason="needs strace")

CALLS = ("write", "fsync", "rename", "renameat", "mkdir", "unlinkat", "ftruncate")


class Call(NamedTuple):
    """A system call that succeeded: its name, and the path or paths that it was about."""

    name: str
    path: str
    target: str = ""


def calls(log: str) -> Iterator[Call]:
    """The calls of a log of `strace -y`."""
    for line in log.splitlines():
        if not (found := re.match(r"\d+ +(\w+)\((.*)\) = \d", line)):
            continue
        name, arguments = found.groups()
        quoted = re.findall(r'"([^"]*)"', arguments)
        opened = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", arguments)
        if name.startswith("rename"):
            yield Call("rename", *quoted)
        elif name == "mkdir":
            yield Call(name, quoted[0])
        elif name == "unlinkat":
            yield Call(name, f"{opened.group(1)}/{quoted[0]}" if opened else quoted[0])
        elif opened:
            yield Call(name, opened.group(1))


@pytest.fixture(scope="module")
def recorded(
    trials: Server, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Call]]:
    """A run with three checkpoints, of which the first is deleted, and its system calls."""
    run = tmp_path_factory.mktemp("recorded") / "deep" / "run"
    log = run.parents[1] / "log"
    changes = ("train.max_steps=3", "train.save_steps=1")
    command = jobs["pretrain"].at(run, *changes)
    trial = trials.start(*command, halted=True)
    with traced(trial, "-y", "-s", "0", "-e", f"trace={','.join(CALLS)}", "-o", str(log)):
        ended = trial.end()
    assert ended.code == 0, ended.err
    assert runs.committed(run) == [2, 3]
    return run, list(calls(log.read_text()))


def commits(recorded: tuple[Path, list[Call]]) -> Iterator[tuple[int, int, Call]]:
    """Place of the beginning and of the rename of each directory that appears whole."""
    run, made = recorded
    places = (run / "final", *(run / "checkpoints" / f"step-{step:010}" for step in (1, 2, 3)))
    for target in map(str, places):
        (end,) = (
            i for i, call in enumerate(made) if call.name == "rename" and call.target == target
        )
        begin = made.index(Call("mkdir", made[end].path))
        yield begin, end, made[end]


def last(made: list[Call], wanted: Call) -> int:
    """Place of the last call like this one."""
    return max(i for i, call in enumerate(made) if call == wanted)


def test_every_file_is_flushed_after_its_last_write_and_before_the_directory_has_its_name(
    recorded: tuple[Path, list[Call]],
) -> None:
    _, made = recorded
    for begin, end, commit in commits(recorded):
        names = {
            re.sub(r"^.*/", "", call.target or call.path): i
            for i, call in enumerate(made[begin:end], begin)
            if call.name in ("write", "rename") and call.path.startswith(commit.path + "/")
        }
        names = {name: place for name, place in names.items() if not name.startswith(".tmp")}
        assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= set(names)
        for name, written in names.items():
            flushed = last(made[:end], Call("fsync", f"{commit.path}/{name}"))
            assert written < flushed < end, name
        manifest = last(made[:end], Call("fsync", f"{commit.path}/manifest.json"))
        assert manifest < last(made[:end], Call("fsync", commit.path))


def test_nothing_older_is_deleted_before_the_new_name_is_flushed(
    recorded: tuple[Path, list[Call]],
) -> None:
    run, made = recorded
    for _, end, _commit in commits(recorded):
        parent = str(run / "checkpoints") if "checkpoints" in made[end].target else str(run)
        flushed = made.index(Call("fsync", parent), end)
        assert all(call.name != "unlinkat" for call in made[end:flushed])
    kept = str(run / "checkpoints" / "step-0000000001")
    (trashed,) = (i for i, call in enumerate(made) if call.name == "rename" and call.path == kept)
    (newest,) = (end for _, end, commit in commits(recorded) if commit.target.endswith("03"))
    assert newest < made.index(Call("fsync", str(run / "checkpoints")), newest) < trashed


def test_the_lines_of_metrics_are_flushed_before_the_checkpoint_that_counts_them(
    recorded: tuple[Path, list[Call]],
) -> None:
    run, made = recorded
    metrics = str(run / "metrics.jsonl")
    for begin, end, commit in commits(recorded):
        if "checkpoints" in commit.target:
            assert last(made[:end], Call("write", metrics)) < last(
                made[:begin], Call("fsync", metrics)
            )


def test_new_directories_are_flushed_into_those_above(recorded: tuple[Path, list[Call]]) -> None:
    run, made = recorded
    for directory in (run.parent, run, run / "checkpoints"):
        begun = made.index(Call("mkdir", str(directory)))
        assert Call("fsync", str(directory.parent)) in made[begun:]
        assert made.index(Call("fsync", str(directory.parent)), begun) - begun <= 3


def test_a_reused_name_is_replaced_only_when_the_new_directory_is_whole(
    trials: Server, jobs: dict[str, Job], tmp_path: Path
) -> None:
    """A finished run that is lengthened exports its model once more."""
    run, log = tmp_path / "run", tmp_path / "log"
    assert trials.run(*jobs["pretrain"].at(run, "train.max_steps=1")).code == 0
    trial = trials.start(*jobs["pretrain"].at(run, "train.max_steps=2"), halted=True)
    with traced(trial, "-y", "-s", "0", "-e", f"trace={','.join(CALLS)}", "-o", str(log)):
        assert trial.end().code == 0
    made, final = list(calls(log.read_text())), str(run / "final")
    (out,) = (i for i, call in enumerate(made) if call.name == "rename" and call.path == final)
    assert made[out + 1].name == "rename"
    assert made[out + 1].target == final
    assert made[out - 1] == Call("fsync", made[out + 1].path)
