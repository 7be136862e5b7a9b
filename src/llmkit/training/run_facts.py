"""The facts of a run in `run.json` and `config.yaml`: command, config, data, and where it ran."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmkit.config.load import as_yaml
from llmkit.config.resolved import Resolved
from llmkit.config.schema import Config
from llmkit.distributed import device as devices
from llmkit.models import tokenizer as tokenizers
from llmkit.storage import atomic, outputs
from llmkit.training import final_model, resolve, run_directory, run_identity
from llmkit.training.resolve import Choices
from llmkit.training.run_identity import dotted
from llmkit.training.schedule import Plan
from llmkit.training.tasks import reasons, sizing
from llmkit.training.tasks.task import Task

_RECORDED = ("output_dir", "train.plan")
"""Keys that a run records, rather than chooses."""


def write_facts(
    task: Task,
    model: PreTrainedModel,
    directory: Path,
    resolved: Resolved,
    plan: Plan,
    chosen: Choices,
    notes: Sequence[str],
) -> None:
    """Writes `run.json`, and `config.yaml`, which repeats the run in another directory."""
    earlier = run_directory.notes(directory)
    chosen_by = origins(task.asked, resolved.model_dump(mode="json"))
    record = {
        "command": task.command,
        "arguments": task.asked.command_line,
        "request": run_identity.request_of(task.asked, task.command),
        **surroundings(devices.name_of(task.session.processes.device)),
        "content": dict(task.content),
        "tokenizer": tokenizers.tokenizer_fingerprint(task.tokenizer),
        "sizes": sizing.as_json(task.config),
        "origins": chosen_by,
        "reasons": reasons.of_choices(task, model, resolved, chosen_by),
        "data": task.data_report,
        "notes": [*earlier, *(note for note in notes if note not in earlier)],
        "warnings": task.session.console.warnings,
        "plan": [[r.step, r.total_steps] for r in plan.revisions],
        "lengthened": list(chosen.lengthened),
        "environment": resolve.environment(),
        "loading": final_model.loading_line(model),
    }
    elsewhere = resolved.changed(output_dir=None, resume="auto")
    run_directory.write_record(directory, record)
    atomic.replace_text(directory / outputs.CONFIG, as_yaml(elsewhere))


def origins(asked: Config, resolved: Mapping[str, Any]) -> dict[str, str]:
    """Where the values of the config come from, for those that are not defaults: `given`, or
    `auto` where the run chose the value."""
    default, given = (dotted(each.model_dump(mode="json")) for each in (Config(), asked))
    values, found = {**given, **dotted(resolved)}, {}
    for key, value in values.items():
        usual = default.get(key)
        if given.get(key, usual) not in (usual, "auto"):
            found[key] = "given"
        elif value != usual and key not in _RECORDED:
            found[key] = "auto"
    return found


def surroundings(device: str) -> dict[str, str]:
    """The date, host and device of a run, and the git commit of the current directory if there is
    one."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": device,
    }
    with suppress(OSError, ValueError):
        if commit := git_commit(Path.cwd()):
            facts["commit"] = commit
    return facts


def git_commit(directory: Path) -> str | None:
    """The current commit of the git repository around a directory, read from its files, since a run
    starts no other program. None without a repository or a commit."""
    git = next(
        (each / ".git" for each in (directory, *directory.parents) if (each / ".git").exists()),
        None,
    )
    if git is None:
        return None
    if git.is_file():  # of a worktree
        git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref, shared = head.removeprefix("ref: "), git
    if (git / "commondir").exists():
        shared = git / (git / "commondir").read_text(encoding="utf-8").strip()
    for place in (git / ref, shared / ref):
        if place.is_file():
            return place.read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
