"""Standard tasks, run with lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit import extras
from llmkit.config import yaml12
from llmkit.config.schema import Config
from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError, InputNotFound, Unsafe
from llmkit.models import pretrained
from llmkit.models.pretrained import Pretrained

_CODE = re.compile(r"!function|unsafe_code\s*:\s*true", re.IGNORECASE)
_BATCH = 16


def check_tasks(config: Config, models: Sequence[Pretrained]) -> None:
    """Raises ConfigError if the harness is missing or a model is not causal, and the errors of
    `names_and_folders` for task files."""
    extras.require("lm_eval", "lm-eval", "a standard task", "evaluation.tasks")
    names_and_folders(config.evaluation.tasks)
    for model in models:
        if model.kind != "causal":
            raise ConfigError(
                f"{model.name} is a {model.kind} model; tasks need a causal one",
                where="model.name_or_path",
                next="name a causal language model",
            )


def measure_tasks(
    config: Config, models: Sequence[Pretrained], processes: Processes
) -> dict[str, Any]:
    """A row for each model, task and metric, and with `log_samples` every evaluated document.

    The harness's own output goes to stderr.
    """
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for model in models:
        with contextlib.redirect_stdout(sys.stderr):
            found = _evaluate(config, model, processes)
        rows += ({"model": model.name, **row} for row in _rows(found))
        for task, documents in found.get("samples", {}).items():
            samples += ({"model": model.name, "task": task, **each} for each in documents)
    return {"tasks": rows, "samples": samples}


def names_and_folders(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the tasks, and the folders of those given as files.

    Raises InputNotFound for a missing file, Unsafe for one that would run code.
    """
    names: list[str] = []
    folders: list[str] = []
    for task in tasks:
        path = Path(task).expanduser()
        if not path.exists():
            if path.suffix in (".yaml", ".yml") or "/" in task:
                raise InputNotFound(
                    f"there is no task file {task}",
                    where="evaluation.tasks",
                    next="name a task of the harness, a task file, or a directory of task files",
                )
            names.append(task)
            continue
        files = sorted(path.glob("**/*.yaml")) if path.is_dir() else [path]
        names += [name for file in files if (name := _task_of(file))]
        folders.append(str(path if path.is_dir() else path.parent))
    return list(dict.fromkeys(names)), list(dict.fromkeys(folders))


def _evaluate(config: Config, opened: Pretrained, processes: Processes) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = config.evaluation
    names, folders = names_and_folders(settings.tasks)
    model = pretrained.load_model(opened).eval().to(processes.device)
    low = processes.precision == "bf16"
    wrapped = HFLM(
        pretrained=model,
        tokenizer=opened.tokenizer,
        batch_size=_BATCH,
        device=str(processes.device),
        mixed_precision_dtype="bfloat16" if low else None,
        trust_remote_code=False,
    )
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=wrapped,
        tasks=names,
        limit=settings.task_limit,
        log_samples=settings.log_samples is not None,
        task_manager=TaskManager(include_path=folders or None),
        random_seed=config.seed,
        confirm_run_unsafe_code=False,
    )
    return found


def _rows(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for task, figures in found["results"].items():
        for name, value in figures.items():
            metric, comma, kind = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{kind}")
                yield {
                    "task": task,
                    "metric": metric,
                    "filter": kind,
                    "value": value,
                    "stderr": error if isinstance(error, float) else None,
                    "examples": found["n-samples"].get(task, {}).get("effective"),
                    "shots": found["n-shot"].get(task),
                    "version": found["versions"].get(task),
                }


def _task_of(file: Path) -> str | None:
    """The task that a file defines; raises Unsafe for one that would run code."""
    if match := _CODE.search(file.read_text(encoding="utf-8")):
        raise Unsafe(
            f"this task file would run code ({match[0]})",
            where=str(file),
            next="use a task without code, or run this one with lm_eval itself",
        )
    task = yaml12.read_yaml(file).value.get("task")
    return task if isinstance(task, str) else None
