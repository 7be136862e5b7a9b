"""A finished model on disk: the files of its manifest, and its card."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError, InputNotFound, NoValidCheckpoint
from llmkit.export.card import check_card, model_card
from llmkit.reporting.run_record import RunRecord, read_run
from llmkit.storage import atomic, paths
from llmkit.storage.outputs import CARD, FINAL, RUN, STATE

NOT_UPLOADED = "nothing was uploaded"


@dataclass(frozen=True)
class ModelFile:
    """A file of a model, as the manifest describes it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FinishedModel:
    """A model that llmkit has finished, and the run that it is of, if its directory is there."""

    directory: Path
    run: RunRecord | None
    files: tuple[ModelFile, ...]
    """The files that the manifest names, without the card."""

    def card(self, repo: str) -> str:
        """The card of the model; if nobody has changed it, it names the model as on the hub.

        Raises DataError or Diverged for a card that must not be published, and InputNotFound if
        there is none.
        """
        path = self.directory / CARD
        text = _read(path) if path.is_file() else None
        run = self.run if self.run is not None and self.run.is_finished else None
        if run is not None and text in (None, model_card(run)):
            text = model_card(run, repo)
        if text is None:
            raise InputNotFound(
                f"the model has no card ({CARD})",
                where=str(self.directory),
                next=f"write {path}, or name the run directory, from which a card is made",
            )
        check_card(text, str(path))
        return text

    def others(self) -> list[str]:
        """The files in the directory that are neither of the model nor its manifest."""
        known = {CARD, atomic.MANIFEST, *(file.name for file in self.files)}
        inside = (each for each in self.directory.rglob("*") if not each.is_dir())
        found = (each.relative_to(self.directory).as_posix() for each in inside)
        return sorted(name for name in found if name not in known)

    def verify(self) -> None:
        """Raises NoValidCheckpoint if a file has changed since it was written."""
        expected = {file.name: {"size": file.size, "sha256": file.sha256} for file in self.files}
        try:
            atomic.verify_files(self.directory, expected)
        except atomic.DamagedError as damage:
            raise _damaged(self.directory, damage) from damage


def open_finished(path: Path) -> FinishedModel:
    """The finished model of a run directory, or the one in a directory; reads no weights.

    Raises InputNotFound for a directory that is neither, and NoValidCheckpoint for a run that is
    unfinished, a checkpoint, or a model whose manifest is damaged.
    """
    if not path.is_dir():
        near = [str(found) for found in paths.near(path) if found.is_dir()]
        raise InputNotFound(
            f"there is no run or model directory {str(path)!r}",
            next=f"did you mean {' or '.join(near)}?" if near else "name a run directory",
        )
    directory, home = path, path.resolve().parent
    if (path / RUN).is_file():
        directory, home = path / FINAL, path
    run = None
    if directory.name == FINAL and (home / RUN).is_file():
        run = read_run(home)
        if directory != path:
            _check_finished(run)
    if not atomic.is_signed(directory):
        raise InputNotFound(
            "this is neither a run nor a model that llmkit wrote: it has no manifest of llmkit",
            where=str(directory),
            next=f"name a run directory; `hf upload NAME {directory}` uploads any directory",
        )
    return FinishedModel(directory, run, _files(directory))


def _check_finished(run: RunRecord) -> None:
    """Raises NoValidCheckpoint for a run that has not reached its end."""
    final = run.directory / FINAL
    if not run.is_finished:
        what = f"the run is unfinished: its last step is {run.last_step:,}"
    elif not final.is_dir():
        what = "the finished model of the run is gone"
    else:
        return
    advice = f"finish it with `{shlex.join(run.command_line)}`"
    if final.is_dir():
        advice += f", or name {final}, a model that it finished earlier"
    raise NoValidCheckpoint(what, where=str(run.directory), kept=NOT_UPLOADED, next=advice)


def _files(directory: Path) -> tuple[ModelFile, ...]:
    """The files that the manifest of a model names, without the card."""
    try:
        found = atomic.read_manifest(directory)["files"]
    except atomic.DamagedError as damage:
        raise _damaged(directory, damage) from damage
    if STATE in found:
        raise NoValidCheckpoint(
            "this is a checkpoint, with the state of the optimizer, not a finished model",
            where=str(directory),
            kept=NOT_UPLOADED,
            next="name the run directory when the run is finished",
        )
    if "config.json" not in found or not any(name.endswith(".safetensors") for name in found):
        raise InputNotFound(
            "llmkit wrote this directory, but it holds no model",
            where=str(directory),
            next="name a run directory",
        )
    return tuple(
        ModelFile(name, file["size"], file["sha256"])
        for name, file in sorted(found.items())
        if name != CARD
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the model card: {error}", where=str(path), kept=NOT_UPLOADED
        ) from error


def _damaged(directory: Path, damage: atomic.DamagedError) -> NoValidCheckpoint:
    return NoValidCheckpoint(
        f"the model is damaged: {damage}",
        where=str(directory),
        kept=NOT_UPLOADED,
        next="run the command of its run again, which writes the model again, or restore the file",
    )
