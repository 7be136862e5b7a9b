"""The commands and tasks that a key of the config applies to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

TASKS: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("causal", "masked"),
    "finetune": ("classification", "completion"),
    "predict": (),
    "generate": (),
    "chat": (),
    "evaluate": ("text", "labels", "references", "tasks"),
}
"""The commands that take a config, and the tasks of those that have several."""


class For:
    """Annotates a key, or all keys of a section, with the jobs that it applies to.

    A job is a command, such as `pretrain`, or one task of it, such as `pretrain/masked`. A key
    without an annotation applies where its section does.
    """

    def __init__(self, *names: str) -> None:
        self.jobs = frozenset(job for name in names for job in jobs_of(name))


def jobs_of(name: str) -> tuple[str, ...]:
    """The jobs that a name stands for: one task, or all of a command.

    Raises ValueError for a name that is neither.
    """
    command, slash, task = name.partition("/")
    if command not in TASKS or (slash and task not in TASKS[command]):
        raise ValueError(f"there is no command or task {name!r}")
    if slash or not TASKS[command]:
        return (name,)
    return tuple(f"{command}/{task}" for task in TASKS[command])


EVERY_JOB = frozenset(job for command in TASKS for job in jobs_of(command))


def named(jobs: Collection[str]) -> list[str]:
    """The jobs under the fewest names: a command where all of its tasks are among them."""
    return [name for command in TASKS for name in _of_command(command, jobs)]


def in_words(jobs: Collection[str]) -> str:
    """The jobs for people: `pretrain, finetune (completion)`."""
    if set(jobs) >= EVERY_JOB:
        return "every command"
    words = []
    for command in TASKS:
        tasks = [name.partition("/")[2] for name in _of_command(command, jobs)]
        if tasks:
            words.append(command + (f" ({', '.join(tasks)})" if all(tasks) else ""))
    return ", ".join(words)


def _of_command(command: str, jobs: Collection[str]) -> Iterator[str]:
    given = [job for job in jobs_of(command) if job in jobs]
    return iter([command] if len(given) == len(jobs_of(command)) else given)
