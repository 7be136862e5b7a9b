"""`llmkit push`: a finished model and its card -> the Hugging Face Hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from rich.filesize import decimal

from llmkit.errors import Interrupted, UsageError
from llmkit.export import push
from llmkit.export.finished_model import NOT_UPLOADED, FinishedModel, open_finished
from llmkit.export.push import Upload
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.training import run_directory


def push_model(
    run: str, repo: str, *, public: bool, yes: bool, dry_run: bool, console: Console
) -> dict[str, Any]:
    """Uploads the finished model of a run in one commit, after showing it and asking.

    Raises UsageError if nobody can be asked, Interrupted after a no, and the errors of
    `llmkit.export.finished_model` and `llmkit.export.push`.
    """
    push.check_repo_name(repo)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty() and not console.json
    if not (can_ask or yes or dry_run):
        raise UsageError(
            "an upload has to be confirmed, and there is no terminal to ask on",
            kept=NOT_UPLOADED,
            next="add --yes to upload without a question, or --dry-run to see what would be",
        )
    if not dry_run:
        push.require_access()
    model = open_finished(Path(run).expanduser())
    with _held(model):
        if dry_run:
            plan = Upload(model, repo, model.card(repo).encode(), private=not public)
        else:
            plan = push.find_repo(model, repo, private=not public)
        model.verify()
        changed = plan.changed(plan.found)
        _show(plan, changed, public, console)
        if dry_run:
            return _result("dry run", plan, changed, None, console)
        if plan.found is not None and not changed:
            console.say(f"nothing to do: {plan.repo} holds this model already")
            return _result("nothing to do", plan, changed, plan.found.sha, console)
        if not yes and not _is_confirmed(f"Upload {many(len(changed), 'file')} to {plan.repo}?"):
            raise Interrupted("the upload was not confirmed", kept=NOT_UPLOADED)
        if console.json or not sys.stderr.isatty():
            disable_progress_bars()
        done = push.upload(plan, console.warn)
        return _result("uploaded", plan, changed, done.oid, console)


def _held(model: FinishedModel) -> AbstractContextManager[None]:
    """Keeps a run from replacing its model meanwhile; in a directory that cannot be written, no run
    can."""
    run = model.run
    if run is None or not os.access(run.directory, os.W_OK):
        return nullcontext()
    return run_directory.held(run.directory)


def _show(plan: Upload, changed: Sequence[str], public: bool, console: Console) -> None:
    """Lists the files with their sizes, where they go, and what stays where it is."""
    who = "private" if plan.private else "public: everybody can read it"
    is_new = ", new" if plan.user and plan.found is None else ""
    console.say(f"{plan.model.directory} -> {plan.url or plan.repo} ({who}{is_new})")
    for file in plan.files:
        note = "" if file.name in changed else "  (unchanged)"
        console.say(f"{decimal(file.size):>10}  {file.name}{note}")
    total = decimal(sum(file.size for file in plan.files))
    console.say(f"{total:>10}  in {many(len(plan.files), 'file')}")
    if others := plan.model.others():
        console.say(f"not uploaded: {', '.join(others)}")
    if public and plan.private:
        console.warn("the repository stays private: its settings on the hub can change that")
    if kept := plan.other_files():
        console.warn(
            f"the repository also holds {', '.join(kept)}: they stay there, and transformers may "
            "read them"
        )


def _is_confirmed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-C, or the end of stdin
        typer.echo(err=True)
        return False


def _result(
    status: str, plan: Upload, changed: Sequence[str], commit: str | None, console: Console
) -> dict[str, Any]:
    """The result for programs; people have seen the files already."""
    found: dict[str, Any] = {
        "command": "push",
        "status": status,
        "repo": plan.repo,
        "url": plan.url,
        "private": plan.private,
        "commit": commit,
    }
    if console.json:
        found["files"] = [{**asdict(file), "changed": file.name in changed} for file in plan.files]
        found["not_uploaded"] = plan.model.others()
    return found
