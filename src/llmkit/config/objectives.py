"""The task and the recipe that a config selects for a command."""

from __future__ import annotations

from llmkit.config import keys, suggestions
from llmkit.config.jobs import TASKS, jobs_of
from llmkit.config.schema import Config
from llmkit.config.suggestions import Writing
from llmkit.config.yaml12 import dump
from llmkit.errors import ConfigError


def check_objective(command: str, config: Config) -> None:
    """Raises ConfigError for an objective of another command."""
    objective = config.train.objective
    if command not in ("pretrain", "finetune") or objective in ("auto", *TASKS[command]):
        return
    other = next(name for name, tasks in TASKS.items() if objective in tasks)
    raise ConfigError(
        f"`{command}` has no objective {objective!r}",
        where="train.objective",
        next=f"write one of {', '.join(TASKS[command])}, or use `llmkit {other}`",
    )


def jobs(command: str, config: Config) -> frozenset[str]:
    """The jobs that a config selects for a command; several where the model decides."""
    if command == "evaluate":
        return frozenset(_of_evaluate(config))
    objective = config.train.objective
    if command == "finetune" and objective == "auto":
        objective = "classification"
    chosen = f"{command}/{objective}"
    return frozenset([chosen] if chosen in jobs_of(command) else jobs_of(command))


def refuse_others(config: Config, job: str) -> None:
    """Raises ConfigError for keys that were given on the command line and do not apply to the job
    that the model has decided."""
    faults = []
    for path in sorted(config._typed):
        key = keys.owner(path)
        if key is not None and job not in key.jobs:
            text = dump(keys.value_at(config, path))
            next = suggestions.for_misplaced(key, {job}, text, Writing(on_command_line=True))
            faults.append(f"{'.'.join(path)}: {suggestions.not_for(key, {job})}; {next}")
    if faults:
        raise ConfigError("keys that do not apply here", where="\n       ".join(faults))


def _of_evaluate(config: Config) -> list[str]:
    if config.evaluation.reference_column is not None:
        return ["evaluate/references"]
    return ["evaluate/tasks"] if config.evaluation.tasks else ["evaluate/text", "evaluate/labels"]
