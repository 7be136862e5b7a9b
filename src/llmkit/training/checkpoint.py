"""Checkpoints: plain Hugging Face directories with the optimizer and the state of the run.

`checkpoints/step-0000000400/` is committed if and only if this name exists and its manifest is
valid; see `llmkit.storage.atomic`. The newest checkpoint is the one of the highest step, not of the
latest time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from llmkit.distributed.processes import Processes
from llmkit.errors import InputNotFound, NoValidCheckpoint, WriteError
from llmkit.storage import atomic, outputs
from llmkit.storage.atomic import FileFacts
from llmkit.training.schedule import Plan, Revision
from llmkit.training.shards import committing, files
from llmkit.training.shards.files import StoredTensors, TensorSet

OPTIMIZER = "optimizer"
"""The stem of the files with the state of the optimizer."""
WEIGHT_BYTES = 12
"""Maximum bytes of a checkpoint per weight: its value and two moments in fp32."""


@dataclass(frozen=True)
class State:
    """Everything besides weights and moments that a run needs to resume bit-identically."""

    step: int
    """Number of completed optimizer steps."""
    plan: Plan
    seconds: float
    """Total time of the run so far, over all its invocations."""
    predictions: int = 0
    """Number of tokens (or examples) that the loss was computed on so far."""
    unlogged_loss: float = 0.0
    """Summed loss since the last logged step."""
    unlogged_predictions: int = 0
    nonfinite_steps: int = 0
    """Number of consecutive steps skipped because of a non-finite loss or gradient."""
    recent_losses: tuple[float, ...] = ()
    """Mean losses of recent steps, to detect spikes: see `llmkit.training.engine`."""
    spiked_step: int = 0
    """The last step with a loss spike."""
    evaluated_step: int = 0
    """The last step whose validation metrics are in metrics.jsonl."""
    best_step: int | None = None
    best_metric: float | None = None
    evaluations_since_best: int = 0
    metrics_size: int = 0
    """Size in bytes of metrics.jsonl after these steps."""

    @property
    def finished(self) -> bool:
        """Whether all planned steps are completed."""
        return self.step >= self.plan.total_steps

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Parse `state.json`; raises ValueError for a value of the wrong type."""
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
    """A committed and verified checkpoint."""

    directory: Path
    state: State
    identity: dict[str, Any]
    """Values that must not change when the run is resumed: see `llmkit.training.run_directory`."""

    def optimizer_tensors(self) -> StoredTensors:
        """The optimizer's state by name; raises NoValidCheckpoint if the files hold none."""
        try:
            return StoredTensors(self.directory, OPTIMIZER)
        except (OSError, ValueError) as error:
            raise NoValidCheckpoint(
                f"the checkpoint has no optimizer state: {error}",
                where=str(self.directory),
                kept="all files",
                next="remove this checkpoint to resume from an older one",
            ) from error


def save_checkpoint(
    root: Path,
    state: State,
    identity: Mapping[str, Any],
    save_model: Callable[[Path], Mapping[str, FileFacts] | None],
    optimizer_tensors: Mapping[str, Tensor],
    processes: Processes | None = None,
) -> Path:
    """Commits a checkpoint of `state.step` and returns its path; an existing one is kept.

    All processes must call it. `save_model` and the optimizer write their files together; rank 0
    writes the state and makes the checkpoint visible, once all have succeeded. Raises on all of
    them WriteError if there is not enough space, with older checkpoints untouched, and Diverged if
    a moment of the optimizer is non-finite.
    """
    target = directory_of(root, state.step)
    is_main = processes is None or processes.is_main
    with committing.alike(processes):
        exists = is_main and target.exists() and _intact(target)
        if is_main and not exists:
            _check_space(root, 3 * sum(t.nbytes for t in optimizer_tensors.values()) // 2)
    if committing.of_main(exists, processes):
        return target

    def fill(directory: Path) -> dict[str, FileFacts]:
        hashed = dict(save_model(directory) or {})
        moments = TensorSet(
            OPTIMIZER, "the optimizer's", files.groups_of(optimizer_tensors), first_owner=1
        )
        hashed |= files.write_tensors(directory, moments, processes)
        if is_main:
            document = {"state": state.to_json(), "identity": identity}
            (directory / outputs.STATE).write_text(json.dumps(document, indent=1), encoding="utf-8")
        return hashed

    committing.commit_together(target, fill, {"step": state.step}, processes)
    return target


def warn_of_space(root: Path, weights: int, warn: Callable[[str], None]) -> None:
    """Warns if there is no space for two checkpoints with this many weights."""
    needed, free = 2 * WEIGHT_BYTES * weights, atomic.free_bytes(root)
    if free < needed:
        warn(
            f"two checkpoints need about {needed:,} bytes, but {free:,} are free at {root}: saving "
            "may fail"
        )


def newest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint; damaged ones are reported and quarantined.

    None if there has never been one. Raises NoValidCheckpoint if all are damaged: a run never
    silently restarts from scratch.
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
            warn(f"checkpoint {directory.name} is damaged and quarantined as {aside.name}: {fault}")
    if damaged or list(root.glob(".corrupt-*")):
        raise NoValidCheckpoint(
            "all checkpoints of the run are damaged",
            where=str(root),
            kept="all files, under .corrupt-*",
            next="restore one from a backup, or start again with another output_dir",
        )
    return None


def read_checkpoint(path: Path, is_verified: bool = False) -> Checkpoint:
    """The checkpoint of this path; there is no fallback. If another rank has verified it, it is not
    hashed again."""
    if not path.is_dir():
        raise InputNotFound(
            "there is no such checkpoint", where=f"resume={path}", next="check the path"
        )
    try:
        return _read(path, is_verified)
    except atomic.DamagedError as fault:
        raise NoValidCheckpoint(
            f"the checkpoint is damaged: {fault}",
            where=str(path),
            kept="all files",
            next="write resume=auto to resume from the newest intact one",
        ) from fault


def prune(root: Path, keep: int, protect: int | None, warn: Callable[[str], None]) -> None:
    """Deletes all checkpoints except the newest `keep` and the protected step; warns if the file
    system refuses."""
    try:
        for step in _steps(root)[:-keep]:
            if step != protect:
                atomic.discard(directory_of(root, step))
    except OSError as error:
        warn(f"an old checkpoint could not be deleted: {error}")


def _steps(root: Path) -> list[int]:
    return [int(each.name.removeprefix("step-")) for each in outputs.checkpoints(root)]


def directory_of(root: Path, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return root / f"step-{step:010}"


def _verified(directory: Path, is_verified: bool = False) -> dict[str, Any]:
    """The manifest of an undamaged checkpoint without additional files."""
    manifest = atomic.read_manifest(directory) if is_verified else atomic.verify(directory)
    for path in sorted(directory.iterdir()):
        # transformers would read it in addition to, or instead of, the verified files.
        if path.name not in (atomic.MANIFEST, *manifest["files"]) and path.name[0] != ".":
            raise atomic.DamagedError(f"{path.name} does not belong to it")
    return manifest


def _read(directory: Path, is_verified: bool = False) -> Checkpoint:
    manifest = _verified(directory, is_verified)
    try:
        document = json.loads((directory / outputs.STATE).read_text(encoding="utf-8"))
        state = State.from_json(document["state"])
        if state.step != manifest["step"] or directory != directory_of(
            directory.parent, state.step
        ):
            raise atomic.DamagedError(f"its files are of step {state.step}")
        return Checkpoint(directory, state, document["identity"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise atomic.DamagedError(f"{outputs.STATE} is not readable: {error}") from error


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
            f"a checkpoint needs {needed:,} bytes, but only {free:,} are free",
            where=str(root),
            kept="all older checkpoints",
            next="free some space, then run the same command again to resume",
        )
