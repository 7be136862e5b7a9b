"""Checkpoints: a plain Hugging Face directory with the optimizer and the state of the run.

`checkpoints/step-0000000400/` is committed exactly when this name exists and its manifest holds;
see `llmkit.storage.atomic`. The newest by step counts, never by time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkit.errors import Diverged, InputNotFound, NoValidCheckpoint, WriteError
from llmkit.storage import atomic, outputs
from llmkit.training.schedule import Plan, Revision

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
WEIGHT_BYTES = 12
"""What a checkpoint holds of a weight, at most: its value and two moments in fp32."""


@dataclass(frozen=True)
class State:
    """All that a run must know to go on as if it had never stopped, weights and moments aside."""

    step: int
    """Optimizer steps done."""
    plan: Plan
    seconds: float
    """Time that the run has used so far, over all its processes in turn."""
    predictions: int = 0
    """Tokens (or examples) that the loss was computed on so far."""
    unlogged_loss: float = 0.0
    """Summed loss since the last logged step."""
    unlogged_predictions: int = 0
    nonfinite_steps: int = 0
    """Steps in a row that were refused for a loss or gradient that is no number."""
    recent_losses: tuple[float, ...] = ()
    """Mean losses of the steps that the next is compared with: see `llmkit.training.engine`."""
    spiked_step: int = 0
    """The last step whose loss stood out from those before it."""
    evaluated_step: int = 0
    """The last step whose validation figures stand in metrics.jsonl."""
    best_step: int | None = None
    best_metric: float | None = None
    evaluations_since_best: int = 0
    metrics_size: int = 0
    """Bytes of metrics.jsonl that belong to the steps done."""

    @property
    def finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.step >= self.plan.total_steps

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """The state that `state.json` holds; raises ValueError for a value of another type."""
        revisions = [Revision(*pair) for pair in value["plan"]]
        if not revisions:
            raise ValueError("it has no plan")
        return TypeAdapter(cls).validate_python({**value, "plan": {"revisions": revisions}})

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        plan = [[r.step, r.total_steps] for r in self.plan.revisions]
        return {**dataclasses.asdict(self), "plan": plan}


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint that has been verified."""

    directory: Path
    state: State
    identity: dict[str, Any]
    """What must not change when the run is resumed: see `llmkit.training.run_directory`."""

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by name; raises NoValidCheckpoint for a file that holds none."""
        try:
            return dict(load_file(self.directory / OPTIMIZER))
        except (SafetensorError, OSError) as error:
            raise NoValidCheckpoint(
                f"the checkpoint has no optimizer state: {error}",
                where=str(self.directory / OPTIMIZER),
                kept="all files",
                next="remove this checkpoint to resume from an older one",
            ) from error


def save_checkpoint(
    root: Path,
    state: State,
    identity: Mapping[str, Any],
    save_model: Callable[[Path], None],
    optimizer_tensors: Mapping[str, Tensor],
) -> Path:
    """Commits a checkpoint of `state.step` and says where; one that stands already is kept.

    Raises WriteError when there is no room, with older checkpoints untouched, and Diverged when a
    moment of the optimizer is no number.
    """
    target = directory_of(root, state.step)
    if target.exists() and _intact(target):
        return target
    for name, tensor in optimizer_tensors.items():
        if not torch.isfinite(tensor).all():
            raise Diverged(
                f"the optimizer's {name} is not finite; it was not saved",
                where=str(target),
                kept="all earlier checkpoints",
                next="lower train.learning_rate in a new run, and check the data",
            )
    _check_space(root, 3 * sum(t.nbytes for t in optimizer_tensors.values()) // 2)

    def fill(directory: Path) -> None:
        save_model(directory)
        save_file({k: v.contiguous() for k, v in optimizer_tensors.items()}, directory / OPTIMIZER)
        document = {"state": state.to_json(), "identity": identity}
        (directory / STATE).write_text(json.dumps(document, indent=1), encoding="utf-8")

    atomic.commit(target, fill, {"step": state.step})
    return target


def warn_of_space(root: Path, weights: int, warn: Callable[[str], None]) -> None:
    """Warns where two checkpoints of so many weights would not find room."""
    needed, free = 2 * WEIGHT_BYTES * weights, atomic.free_bytes(root)
    if free < needed:
        warn(
            f"two checkpoints need about {needed:,} bytes and {free:,} are free at {root}: saving "
            "may fail"
        )


def newest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint; damaged ones are named and set aside.

    None when there has never been one. Raises NoValidCheckpoint when all are damaged: a run is
    never silently started again from nothing.
    """
    atomic.clean(root)
    steps = _steps(root)
    damaged = 0
    for step in reversed(steps):
        directory = directory_of(root, step)
        try:
            return _read(directory)
        except atomic.DamagedError as fault:
            damaged += 1
            aside = atomic.quarantine(directory)
            warn(f"checkpoint {directory.name} is damaged and set aside as {aside.name}: {fault}")
    if damaged or list(root.glob(".corrupt-*")):
        raise NoValidCheckpoint(
            "none of the run's checkpoints is whole",
            where=str(root),
            kept="all files, under .corrupt-*",
            next="restore one from a backup, or start anew with another output_dir",
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that the user names; no other takes its place."""
    if not path.is_dir():
        raise InputNotFound(
            "there is no such checkpoint", where=f"resume={path}", next="check the path"
        )
    try:
        return _read(path)
    except atomic.DamagedError as fault:
        raise NoValidCheckpoint(
            f"the checkpoint is damaged: {fault}",
            where=str(path),
            kept="all files",
            next="write resume=auto to resume from the newest intact one",
        ) from fault


def prune(root: Path, keep: int, protect: int | None, warn: Callable[[str], None]) -> None:
    """Deletes all checkpoints but the newest `keep` and the protected step; warns of what the disk
    does not let it delete."""
    try:
        for step in _steps(root)[:-keep]:
            if step != protect:
                atomic.discard(directory_of(root, step))
    except OSError as error:
        warn(f"an old checkpoint could not be deleted: {error}")


def _steps(root: Path) -> list[int]:
    return [int(each.name.removeprefix("step-")) for each in outputs.checkpoints(root)]


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return root / f"step-{step:010}"


def _verified(directory: Path) -> dict[str, Any]:
    """The manifest of an undamaged checkpoint in which no other file stands."""
    manifest = atomic.verify(directory)
    for path in sorted(directory.iterdir()):
        # Unseen, transformers would read it besides, or instead of, the files that we know.
        if path.name not in (atomic.MANIFEST, *manifest["files"]) and path.name[0] != ".":
            raise atomic.DamagedError(f"{path.name} does not belong to it")
    return manifest


def _read(directory: Path) -> Checkpoint:
    manifest = _verified(directory)
    try:
        document = json.loads((directory / STATE).read_text(encoding="utf-8"))
        state = State.from_json(document["state"])
        if state.step != manifest["step"] or directory != directory_of(
            directory.parent, state.step
        ):
            raise atomic.DamagedError(f"its files are of step {state.step}")
        return Checkpoint(directory, state, document["identity"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise atomic.DamagedError(f"{STATE} is not readable: {error}") from error


def _intact(directory: Path) -> bool:
    try:
        _verified(directory)
    except atomic.DamagedError:
        atomic.quarantine(directory)
        return False
    return True


def _check_space(root: Path, needed: int) -> None:
    free = atomic.free_bytes(root)
    if free < needed:
        raise WriteError(
            f"a checkpoint needs {needed:,} bytes and {free:,} are free",
            where=str(root),
            kept="all older checkpoints",
            next="free some space, then run the same command again to resume",
        )
