"""Experiment trackers beside the run directory: TensorBoard, W&B, MLflow and trackio.

A run is one run of each tracker, however often it is resumed: `trackers.json` in the run directory
holds its id there. What a tracker holds already is not sent again.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)

from llmkit.distributed.launcher import is_main_process
from llmkit.errors import ConfigError, WriteError
from llmkit.reporting.console import Console
from llmkit.storage import atomic

SENT_FILE = "trackers.json"
PROJECT = "llmkit"
"""The project, or experiment, of the runs; the variables of a tracker override it."""

LONGEST_VALUE = 500
"""Number of characters sent of a config value; MLflow refuses long ones."""

FLUSH_SECONDS = 10
"""How late TensorBoard may show a figure."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # A server that does not answer must not hold up training: what it misses is sent on resume.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class Sent:
    """The run of one tracker, and the last figures that it received."""

    id: str
    address: str | None = None
    """The store of MLflow."""
    step: int = -1
    names: tuple[str, ...] = ()
    """Figures sent at this step; those of earlier steps are all sent."""

    def missing(self, figures: Mapping[str, float], step: int) -> dict[str, float]:
        """The figures of a step that were not sent yet."""
        if step < self.step:
            return {}
        known = self.names if step == self.step else ()
        return {name: value for name, value in figures.items() if name not in known}

    def after(self, figures: Mapping[str, float], step: int) -> Sent:
        """This with more figures sent."""
        known = self.names if step == self.step else ()
        return replace(self, step=step, names=(*known, *figures))


class Tracking:
    """The trackers of a run while it trains.

    A tracker that fails is reported once, and is sent nothing more; resuming the run sends it what
    it has missed.
    """

    def __init__(self, directory: Path, console: Console) -> None:
        self.directory, self.console = directory, console
        self.path = directory / SENT_FILE
        self.sent = _read(self.path)
        self.started: dict[str, GeneralTracker] = {}

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Starts a tracker, in its earlier run if there is one; raises ConfigError."""
        try:
            tracker, sent = self._resumed(name) or _started(name, self.directory, None)
            if sent.step < 0:
                tracker.store_init_configuration(_plain(config))
        except Exception as error:  # each tracker has errors of its own
            raise ConfigError(
                f"report_to={name} cannot start: {_reason(error)}",
                where="report_to",
                kept="the run; metrics.jsonl holds its figures",
                next=f"check the settings of {name}, or remove it from report_to: a later resume "
                "with it sends all figures",
            ) from error
        self.started[name], self.sent[name] = tracker, sent
        self.console.say(f"{name}: {_place(name, self.directory, sent)}")
        self._write()

    def _resumed(self, name: str) -> tuple[GeneralTracker, Sent] | None:
        """The earlier run of a tracker; None without one, or if the tracker has lost it."""
        if (known := self.sent.get(name)) is None:
            return None
        try:
            tracker, sent = _started(name, self.directory, known)
            return tracker, _stored(name, self.directory, sent)
        except Exception as error:
            self.console.warn(
                f"{name} cannot resume its run {known.id}: {_reason(error)}; a new run receives "
                "all figures"
            )
            return None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Sends figures that were not sent before; `flush` makes them survive a crash."""
        for name, tracker in list(self.started.items()):
            if not (new := self.sent[name].missing(_named(name, figures), step)):
                continue
            try:
                _send(name, tracker, new, step)
            except Exception as error:
                self._drop(name, error)
                continue
            self.sent[name] = self.sent[name].after(new, step)

    def flush(self) -> None:
        """Writes what was sent, and the record of it, to disk: slow, so not after every step.

        Steps after the last flush of a killed run are trained and logged again by the resumed run.
        """
        for name, tracker in list(self.started.items()):
            try:
                _flush(name, tracker)
            except Exception as error:
                self._drop(name, error)
        self._write()

    def end(self, completed: bool) -> None:
        """Ends the run of each tracker; a stopped run is not reported as finished."""
        for name, tracker in list(self.started.items()):
            try:
                _end(name, tracker, completed)
            except Exception as error:
                self._drop(name, error)
        self._write()

    def _drop(self, name: str, error: Exception) -> None:
        del self.started[name]
        self.console.warn(
            f"{name} failed, and is sent nothing more: {_reason(error)}; metrics.jsonl has all "
            "figures, and resuming the run sends the missing ones"
        )

    def _write(self) -> None:
        found = {name: asdict(sent) for name, sent in self.sent.items()}
        try:
            atomic.replace_text(self.path, json.dumps(found, indent=1) + "\n")
        except WriteError as fault:
            self.console.warn(
                f"{fault.what} ({fault.where}): when the run is resumed, its trackers may receive "
                "figures twice"
            )


@contextmanager
def tracking(
    names: Sequence[str], directory: Path, config: Mapping[str, Any], console: Console
) -> Iterator[Tracking | None]:
    """The trackers of a run, ended with it; None without trackers, and on other processes.

    What they print goes to stderr. Raises ConfigError if one cannot start.
    """
    if not names or not is_main_process():
        yield None
        return
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    found, completed = Tracking(directory, console), False
    with redirect_stdout(sys.stderr):
        try:
            for name in names:
                found.start(name, config)
            yield found
            completed = True
        finally:
            found.end(completed)


def _started(name: str, directory: Path, known: Sent | None) -> tuple[GeneralTracker, Sent]:
    """A started tracker and its run: the known one, or a new one that has received nothing."""
    label = directory.resolve().name
    match name:
        case "tensorboard":
            tracker = TensorBoardTracker(PROJECT, str(directory), flush_secs=FLUSH_SECONDS)
            sent = known or Sent(PROJECT)
        case "wandb":
            sent = known or Sent(os.environ.get("WANDB_RUN_ID", uuid.uuid4().hex[:8]))
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            title = os.environ.get("WANDB_NAME", label)
            tracker = WandBTracker(project, id=sent.id, name=title, resume="allow")
        case "trackio":
            sent = known or Sent(f"{label}-{uuid.uuid4().hex[:8]}")
            quiet = dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False)
            tracker = TrackioTracker(PROJECT, name=sent.id, resume="allow", **quiet)
        case _:
            return _started_mlflow(label, known)
    tracker.start()
    return tracker, sent


def _started_mlflow(label: str, known: Sent | None) -> tuple[GeneralTracker, Sent]:
    """MLflow gives a run its id; without MLFLOW_TRACKING_URI, a resumed run keeps the store that it
    began in, wherever it is resumed."""
    import mlflow

    if known is not None and not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(known.address)
    tracker = MLflowTracker(PROJECT, run_id=known.id if known else None, run_name=label)
    tracker.start()
    if known is not None:
        return tracker, known
    return tracker, Sent(str(tracker.tracker.info.run_id), str(mlflow.get_tracking_uri()))


def _stored(name: str, directory: Path, known: Sent) -> Sent:
    """What a tracker holds of an earlier run.

    Our own record may differ by the last figures of a killed run: it is written after them, and
    trackio stores them half a second late. For W&B, which merges figures of one step, it is enough.
    """
    match name:
        case "tensorboard":
            steps = _steps_of_tensorboard(directory / PROJECT)
        case "mlflow":
            steps = _steps_of_mlflow(known.id)
        case "trackio" if not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & set(os.environ):
            steps = _steps_of_trackio(known.id)
        case _:
            return known
    last = max(steps.values(), default=-1)
    return replace(known, step=last, names=tuple(k for k, step in steps.items() if step == last))


def _steps_of_tensorboard(directory: Path) -> dict[str, int]:
    """The last step of each figure in the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(directory), size_guidance={"scalars": 1}, purge_orphaned_data=False
    ).Reload()
    return {tag: events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]}


def _steps_of_mlflow(run: str) -> dict[str, int]:
    """The last step of each figure in MLflow."""
    import mlflow

    client = mlflow.MlflowClient()
    return {
        key: max(each.step for each in client.get_metric_history(run, key))
        for key in client.get_run(run).data.metrics
    }


def _steps_of_trackio(run: str) -> dict[str, int]:
    """The last step of each figure in the local store of trackio."""
    from trackio.sqlite_storage import SQLiteStorage

    records = SQLiteStorage.get_logs(PROJECT, run)
    return {key: int(record["step"]) for record in records for key in record}


def _send(name: str, tracker: GeneralTracker, figures: Mapping[str, float], step: int) -> None:
    if name != "tensorboard":
        tracker.log(figures, step=step)
        return
    for key, value in figures.items():  # accelerate's `log` waits for the disk each time
        tracker.writer.add_scalar(key, value, step)


def _flush(name: str, tracker: GeneralTracker) -> None:
    if name == "tensorboard":  # the others send what they have from threads of their own
        tracker.writer.flush()


def _end(name: str, tracker: GeneralTracker, completed: bool) -> None:
    match name:
        case "mlflow":
            import mlflow

            mlflow.end_run("FINISHED" if completed else "KILLED")
        case "wandb":
            tracker.tracker.finish(exit_code=0 if completed else 1)
        case "trackio":  # the run's own `finish` is called again, and prints, when Python exits
            import trackio

            trackio.finish()
        case _:
            tracker.finish()


def _place(name: str, directory: Path, sent: Sent) -> str:
    """Where people find the run."""
    match name:
        case "tensorboard":
            return f"`tensorboard --logdir {directory}`"
        case "mlflow":
            return f"run {sent.id}; `mlflow ui --backend-store-uri {sent.address}`"
        case "trackio":
            return f"run {sent.id}; `trackio show --project {PROJECT}`"
        case _:
            return f"run {sent.id}"


def _named(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures with names that the tracker accepts; names of domains can hold any character."""
    if name != "mlflow":
        return dict(figures)
    return {re.sub(r"[^\w\-./: ]", "_", key): value for key, value in figures.items()}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | float) else str(value)[:LONGEST_VALUE]
        for key, value in config.items()
    }


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _read(path: Path) -> dict[str, Sent]:
    """What the trackers of the run have received; empty for a new run, or a damaged file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Sent(**{**each, "names": tuple(each["names"])}) for name, each in found.items()
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}
