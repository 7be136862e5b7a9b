"""Jobs: commands and their tasks, the keys that apply to each, and the metrics it reports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

TASKS: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("causal", "masked", "span_corruption"),
    "finetune": (
        "classification",
        "token_classification",
        "question_answering",
        "completion",
        "sequence_to_sequence",
        "preference",
    ),
    "merge": (),
    "predict": (),
    "generate": ("continuation", "masks", "sequence_to_sequence"),
    "chat": (),
    "serve": (),
    "evaluate": ("text", "labels", "tags", "answers", "references", "preferences", "tasks"),
    "export": (),
    "clean": (),
}
"""The commands that take a config, and the tasks of each command with more than one."""


def command_of_keys(command: str) -> str:
    """The command whose keys a command takes: `prepare` makes the data of `pretrain`."""
    return "pretrain" if command == "prepare" else command


class For:
    """Annotates a key, or a whole section, with the jobs that it applies to.

    A job is a command, such as `pretrain`, or one task of it, such as `pretrain/masked`. A key
    without an annotation applies where its section does.
    """

    def __init__(self, *names: str) -> None:
        self.jobs = frozenset(job for name in names for job in jobs_of(name))


def jobs_of(name: str) -> tuple[str, ...]:
    """The jobs of a name: one task, or all tasks of a command.

    Raises ValueError for other names.
    """
    command, slash, task = name.partition("/")
    if command not in TASKS or (slash and task not in TASKS[command]):
        raise ValueError(f"there is no command or task {name!r}")
    if slash or not TASKS[command]:
        return (name,)
    return tuple(f"{command}/{task}" for task in TASKS[command])


EVERY_JOB = frozenset(job for command in TASKS for job in jobs_of(command))


def shortest_names(jobs: Collection[str]) -> list[str]:
    """The jobs, with all tasks of a command shortened to its name."""
    return [name for command in TASKS for name in _of_command(command, jobs)]


def in_words(jobs: Collection[str]) -> str:
    """The jobs as prose: `pretrain, finetune (completion)`."""
    missing = shortest_names(EVERY_JOB - set(jobs))
    if not missing:
        return "every command"
    if len(missing) == 1 and missing[0] in TASKS:
        return f"every command but {missing[0]}"
    words = []
    for command in TASKS:
        tasks = [name.partition("/")[2] for name in _of_command(command, jobs)]
        if tasks:
            words.append(command + (f" ({', '.join(tasks)})" if all(tasks) else ""))
    return ", ".join(words)


def _of_command(command: str, jobs: Collection[str]) -> Iterator[str]:
    given = [job for job in jobs_of(command) if job in jobs]
    return iter([command] if len(given) == len(jobs_of(command)) else given)


CAUSAL_METRICS = ("loss", "perplexity", "bits_per_byte")
MASKED_METRICS: tuple[str, ...] = ("loss", "accuracy")
NEXT_SENTENCE_METRICS: tuple[str, ...] = ("next_sentence_loss", "next_sentence_accuracy")
RESPONSE_METRICS = ("loss", "perplexity")
PREFERENCE_METRICS = ("loss", "accuracy", "margin")
LABEL_METRICS = {
    "regression": ("mse", "mae", "pearson"),
    "multi_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_weighted"),
    "single_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews"),
}
"""The metrics of labelled rows besides the loss, by `data.problem_type`."""

TAG_METRICS = {
    "entities": (
        "f1", "precision", "recall", "f1_macro", "f1_strict", "precision_strict", "recall_strict",
        "accuracy",
    ),
    "plain": ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews"),
}  # fmt: skip
"""The metrics of tagged words besides the loss: of entities, or of words in a plain scheme."""

ANSWER_METRICS = ("f1", "exact_match")
"""The metrics of answers to questions besides the loss."""

_METRICS = {
    "pretrain/causal": CAUSAL_METRICS,
    "pretrain/masked": (*MASKED_METRICS, *NEXT_SENTENCE_METRICS),
    "pretrain/span_corruption": MASKED_METRICS,
    "finetune/completion": RESPONSE_METRICS,
    "finetune/sequence_to_sequence": RESPONSE_METRICS,
    "finetune/preference": PREFERENCE_METRICS,
    "finetune/question_answering": ("loss", *ANSWER_METRICS),
    "finetune/token_classification": ("loss", *TAG_METRICS["entities"], *TAG_METRICS["plain"]),
}


def metrics(jobs: Collection[str], problem_type: str) -> list[str]:
    """The validation metrics that any of the jobs may report."""
    return list(dict.fromkeys(_metrics_of(jobs, problem_type)))


def _metrics_of(jobs: Collection[str], problem_type: str) -> Iterator[str]:
    for job in sorted(jobs):
        yield from _METRICS.get(job, ("loss",))
        if job == "finetune/classification":
            for kind, found in reversed(LABEL_METRICS.items()):
                yield from found if problem_type in ("auto", kind) else ()
